"""From a source to betons: plan, encode in parallel, write to a temporary folder, move into place; resumable."""
