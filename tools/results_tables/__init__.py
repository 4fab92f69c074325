"""Tables of the committed CSV files as Markdown lines; `tools/results_table.py` puts them into the pages."""
