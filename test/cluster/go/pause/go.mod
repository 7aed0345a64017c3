module etcdproxy-controller/cluster/pause

go 1.26.0
