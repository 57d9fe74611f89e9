"""The report's charts as SVG and PDF for a paper, drawn by Matplotlib, which needs no browser."""
