"""Builds the report's charts as Plotly figures, plain dictionaries that the page's script colours by theme."""
