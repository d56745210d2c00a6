"""What a report shows, made from files alone: scores, runs, predictions and tables of other assessments in, plain data out.

Each module answers for one part of the page and returns plain data; ``page.html.j2`` and ``page.md.j2`` only lay it out. Every number
shown can be recomputed from the tables that the report is made from.
"""
