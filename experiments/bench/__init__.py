"""Speed and memory on a GPU, measured side by side: `python -m experiments.bench bench=layer_flux out=FILE.json`."""
