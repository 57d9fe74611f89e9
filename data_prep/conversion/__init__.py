"""From a source to betons: plan, encode in parallel, write beside, check, put in place; resumable at any point."""
