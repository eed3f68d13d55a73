"""stub"""
from pathlib import Path
def write(runs, out):
    return out
