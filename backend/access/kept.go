package access

import (
	"sync"
	"time"
)

// kept are answers of the API server's, each for a while. There are so many at most. Where there is
// no more room, it is the client with the most of them who loses the oldest: nobody who asks a lot
// makes the answers of others go.
type kept struct {
	size int
	life time.Duration

	mu      sync.Mutex
	answers map[string]*keptAnswer
	clients map[string][]*keptAnswer // each in the order of their times; with those that are gone
	counts  map[string]int           // of clients, without those that are gone
}

type keptAnswer struct {
	key, client string
	answer      answer
	at          time.Time
	gone        bool
}

func newKept(size int, life time.Duration) *kept {
	return &kept{size: size, life: life, answers: map[string]*keptAnswer{}, clients: map[string][]*keptAnswer{}, counts: map[string]int{}}
}

func (k *kept) get(key string) (answer, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	a := k.answers[key]
	if a == nil || time.Since(a.at) >= k.life {
		return answer{}, false
	}
	return a.answer, true
}

// add keeps an answer to a client's question.
func (k *kept) add(client, key string, a answer) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.drop(k.answers[key])
	now := time.Now()
	mine := k.clients[client]
	for len(mine) > 0 && (mine[0].gone || now.Sub(mine[0].at) >= k.life) {
		k.drop(mine[0])
		mine = mine[1:]
	}
	added := &keptAnswer{key: key, client: client, answer: a, at: now}
	k.clients[client] = append(mine, added)
	k.counts[client]++
	k.answers[key] = added
	if len(k.answers) > k.size {
		k.dropOldest()
	}
}

func (k *kept) remove(key string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.drop(k.answers[key])
}

// drop forgets an answer. What stands for it among its client's is taken away later. The caller
// holds the lock.
func (k *kept) drop(a *keptAnswer) {
	if a == nil || a.gone {
		return
	}
	a.gone = true
	delete(k.answers, a.key)
	if k.counts[a.client]--; k.counts[a.client] == 0 {
		delete(k.counts, a.client)
		delete(k.clients, a.client)
	}
}

// dropOldest makes room. The caller holds the lock.
func (k *kept) dropOldest() {
	most := ""
	for client, n := range k.counts {
		if n > k.counts[most] {
			most = client
		}
	}
	theirs := k.clients[most]
	for theirs[0].gone {
		theirs = theirs[1:]
	}
	k.clients[most] = theirs[1:]
	k.drop(theirs[0])
}
