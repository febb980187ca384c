"""Helpers of the tests: servers, proxies, sites, storages and engines."""
