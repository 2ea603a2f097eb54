"""What `bench-layers` and `bench-stack` measure, beside what the machine allows."""
