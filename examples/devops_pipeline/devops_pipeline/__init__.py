"""A deploy pipeline: ResourceAllocator, EnvAnalyzer, SecretResolver, Deployer. `python -m devops_pipeline --help` runs it."""
