"""world_models.py"""
