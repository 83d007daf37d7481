//go:build !linux

package main

import (
	"context"

	"github.com/conntrace/conntrace/pkg/tracker"
)

// dropPrivileges has nothing to do: there are no capabilities to give up.
func dropPrivileges(context.Context, tracker.Source) error { return nil }

// dropsPrivileges reports whether watch gives up capabilities.
func dropsPrivileges() bool { return false }
