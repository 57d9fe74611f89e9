"""The report's charts as Plotly figures, plain dictionaries; the page's script gives them the colours of its theme."""
