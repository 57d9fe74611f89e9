"""Studies on Ray: what would run, running it, and going on with it. The only room that imports Ray."""
