"""Lessons: percent scripts that are run cell by cell, in the terminal and onto pages."""
