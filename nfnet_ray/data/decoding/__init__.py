"""From the bytes of a JPEG to pixels: the choice of a decoder, the box that is decoded, resizing."""
