"""Objectives over preferences: from one number an answer to the losses of the rows."""
