"""Methods that touch a diffusion model: pure tensor modules, and `patches`, which binds them to the host."""
