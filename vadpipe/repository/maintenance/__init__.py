"""What keeps a repository: proving it, giving space back, mending it, deciding what stays.

verify, checksums      read everything back, with the keys or without     repair      damage goes, what is sound
stays prune                  space of what no point needs                       retention   which points stay
forgetting             removing points, holds, heads                      statistics  what points take; frame_use
changes                what changed between two points
"""
