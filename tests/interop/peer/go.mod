module interop/peer

go 1.26.0
