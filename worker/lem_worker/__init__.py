"""The measuring side: a daemon that claims runs and the processes that measure them."""
