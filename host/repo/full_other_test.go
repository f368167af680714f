//go:build !linux

package repo

func playFullDisk(string) {}
