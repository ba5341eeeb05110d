"""The five stages: each file holds the arguments and the story of one."""
