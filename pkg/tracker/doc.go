// Package tracker tells which process has which network connection: once, as
// psutil's net_connections() does ([NetConnections]), or continuously, as
// connections open, are accepted, fail and close ([Open]).
//
// On Linux a [Tracker] sees every TCP connection of the machine by BPF programs
// and knows who opened or accepted it. Where BPF cannot be had it polls the
// kernel's tables instead; [Tracker.Info] says which, and why.
//
//	t, err := tracker.Open(ctx, tracker.Config{})
//	if err != nil {
//		return err
//	}
//	defer t.Close()
//	sub, err := t.Subscribe(tracker.Filter{})
//	if err != nil {
//		return err
//	}
//	for event, err := range sub.Events(ctx) {
//		if err != nil {
//			return err
//		}
//		fmt.Println(event.Type, event.PID, event.Laddr, event.Raddr)
//	}
package tracker
