"""The main job: a prefix-cache replay against real memory nodes, every byte checked."""
