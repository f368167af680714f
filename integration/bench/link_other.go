//go:build !linux

package main

import (
	"context"
	"errors"
	"time"
)

// A link joins nodes by an emulated network, on Linux only.
type link struct{}

var errNoLink = errors.New("links are emulated on Linux only")

func linkPossible(context.Context) error { return errNoLink }

func newLink(context.Context, int, time.Duration, float64) (*link, error) { return nil, errNoLink }

func (l *link) place(int) (netns, ip string) { return "", "" }
func (l *link) dropped() int64               { return 0 }
func (l *link) close()                       {}
