"""Draws the report's charts as SVG and PDF for a paper, with Matplotlib, which needs no browser."""
