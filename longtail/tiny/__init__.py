"""The bundled miniature LLaVA: its scenes, its training and its export. Runs on a CPU and needs no network."""
