# make without a target shows what there is.

STATICCHECK := go tool staticcheck
FUZZTIME ?= 1m

.PHONY: help build test lint fuzz bench demo e2e

help: ## show this
	@sed -n 's/^\([a-z0-9]*\):.*## /  make \1\t/p' Makefile | expand -t 20

build: ## compile everything
	go build ./...

test: lint ## vet, staticcheck, and every test with the race detector
	go test -race -timeout 20m ./...

lint: ## gofmt, vet, staticcheck
	@test -z "$$(gofmt -l .)" || { gofmt -l . | sed 's/^/not gofmt-ed: /'; exit 1; }
	go vet ./...
	$(STATICCHECK) ./...

fuzz: ## fuzz every decoder and the engine, FUZZTIME each (1m)
	@go list -f '{{.Dir}}' ./... | while read -r dir; do \
	  for f in $$(grep -hos '^func Fuzz[A-Za-z0-9]*' $$dir/*_test.go | cut -c6-); do \
	    echo "$$f in $$dir"; (cd $$dir && go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) .) || exit 1; \
	  done; done

bench: ## benchmarks at the seams: engine step, decode, verify, transfer, plugin boundary
	go test -run '^$$' -bench . -benchmem ./exchange/... ./plugin/channel ./plugin/remote

e2e: ## real Kubo (built from source), Helia and kubo-rpc-client (npm), and ours, fetch from each other
	go build -C integration/kubo -o $(CURDIR)/bin/ipfs github.com/ipfs/kubo/cmd/ipfs
	cd integration/helia && npm ci --no-audit --no-fund
	CODEXCHANGE_KUBO=$(CURDIR)/bin/ipfs go test -count=1 -run TestKubo -v ./integration/placements
	CODEXCHANGE_KUBO=$(CURDIR)/bin/ipfs CODEXCHANGE_HELIA=$(CURDIR)/integration/helia CODEXCHANGE_CHURN=60s \
	  go test -count=1 -timeout 10m -v ./integration/crossing
	go test -count=1 -v -run TestSuite ./integration/gateway # if CODEXCHANGE_GATEWAY_CONFORMANCE names its program

demo: ## move 64 MiB between two nodes, by the Codex block exchange and by Bitswap
	go run ./cmd/host demo
