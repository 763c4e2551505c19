"""OCI artifacts, images, layouts and registries."""
