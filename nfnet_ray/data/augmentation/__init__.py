"""Crops, RandAugment, MixUp and CutMix, image sizes that grow, and the sheet that shows them."""
