"""What the tests stand on: servers, proxies, sites, storages and engines made for them."""
