"""Reports: figures, methods text and the HTML pages of participants and groups."""
