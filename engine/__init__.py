"""The sparse CPU runtime. Empty until its kernels land."""
