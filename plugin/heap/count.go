package heap

import "runtime"

// Count has the collector count so many bytes, which lie outside the heap, as if they
// were on it, until release is called. It may be called by any goroutine, release once.
//
// The collector looks at how much a heap keeps to say how much may come on top. Bytes
// that are moved out of a heap, into memory that is mapped, would have it collected the more
// often.
//
// No pages are taken for it: it is a part of the heap that nobody touches. (If the
// process has had a heap that large before and the runtime takes of that, it clears it.)
func Count(bytes int) (release func()) {
	b := make([]byte, bytes)
	return func() {
		runtime.KeepAlive(b)
		b = nil
	}
}
