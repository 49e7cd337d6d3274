"""What the algorithms share. Tools run as `python -m common.copy`, `python -m common.check_env`."""

__path__.append(f"{__path__[0]}/tools")  # so that `common.copy` is found in common/tools/
