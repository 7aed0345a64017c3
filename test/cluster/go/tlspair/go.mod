module etcdproxy-controller/cluster/tlspair

go 1.26.0
