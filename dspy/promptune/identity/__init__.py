"""What a run is: values as JSON, code as digests, and what is compared when a run is taken up again."""
