"""The ergodicity study: how fast chains forget their start, how far from the target they end."""
