"""Search for cells: spaces of operations and rules, a network that holds all of them, engines that choose."""
