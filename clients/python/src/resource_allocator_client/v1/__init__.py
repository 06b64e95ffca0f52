"""The messages and the services of the contract, generated from proto/ by scripts/generate-python-stubs."""
