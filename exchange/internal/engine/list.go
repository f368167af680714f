package engine

// A list keeps things in the order they came. What can be in one embeds a hook,
// and is in at most one list at a time. Owner of both is the Engine.
type list[T any, P linked[T]] struct {
	head, tail *T
	len        int
}

// A hook holds its neighbours in a list.
type hook[T any] struct {
	prev, next *T
}

func (h *hook[T]) neighbours() *hook[T] { return h }

var _ = (*hook[want]).neighbours // it is called through linked only

type linked[T any] interface {
	*T
	neighbours() *hook[T]
}

func (l *list[T, P]) push(x *T) {
	h := P(x).neighbours()
	h.prev, h.next = l.tail, nil
	if l.tail == nil {
		l.head = x
	} else {
		P(l.tail).neighbours().next = x
	}
	l.tail = x
	l.len++
}

func (l *list[T, P]) remove(x *T) {
	h := P(x).neighbours()
	if h.prev == nil {
		l.head = h.next
	} else {
		P(h.prev).neighbours().next = h.next
	}
	if h.next == nil {
		l.tail = h.prev
	} else {
		P(h.next).neighbours().prev = h.prev
	}
	*h = hook[T]{}
	l.len--
}
