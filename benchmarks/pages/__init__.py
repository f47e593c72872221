"""Pages in markdown, each made from the lines of JSON in a folder of results; `render.py` writes them."""
