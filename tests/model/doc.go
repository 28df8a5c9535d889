// Package model compares what package backend says of an archive with a reader that is small, slow
// and obviously right, over random histories of shippers: crashes, restarts, lost states, tails
// first, compaction, clocks that jump, and names that are used again. It holds tests alone.
//
// world.go makes a history, store.go shows it as a store at any moment, and reader.go is the slow
// reader, which decides by the text of docs/format.md.
package model
