// Package pb is the contract between a host and its plugin as messages and gRPC
// services. plugin.proto is the contract itself, with the meaning of every field;
// errors.go carries Go errors in it, trace.go spans.
//
// To generate the code again, protoc 3.21 or later is needed beside Go; the
// generators are tools of this module.
package pb

//go:generate sh -c "protoc --plugin=protoc-gen-go=$(go tool -n protoc-gen-go) --plugin=protoc-gen-go-grpc=$(go tool -n protoc-gen-go-grpc) --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative plugin.proto"
