"""How a program reaches Ray: addresses, a Ray that it starts itself, nodes, places, functions run on every node."""
