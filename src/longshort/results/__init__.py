import os

# Figures are files. A notebook hands its own backend on to what is started in it, and the import of matplotlib fails
# where that one is not installed.
os.environ["MPLBACKEND"] = "agg"
