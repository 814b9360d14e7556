"""Sentences that belong to no task: what two checkpoints' streams are aligned on.

Prose of many kinds, no facts that a relation asks for; written for this package.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Neutral(NamedTuple):
    """The sentences as token ids."""

    ids: "NDArray[np.int64]"  # [row, position], right-padded
    length: "NDArray[np.int64]"  # [row], tokens without padding


def neutral(tokenizer: Any) -> Neutral:
    """The sentences in the tokenizer's own ids, what it adds (BOS) with them."""
    rows = [tokenizer(text, verbose=False)["input_ids"] for text in SENTENCES]
    length = np.array([len(row) for row in rows])
    ids = np.zeros((len(rows), length.max()), np.int64)
    for row, found in zip(ids, rows, strict=True):
        row[: len(found)] = found
    return Neutral(ids, length)


SENTENCES = tuple(
    """
The kettle had been whistling for a while before anyone in the house bothered to get up.
She folded the letter twice, slid it under the lamp, and went to look for her other glove.
Most bread needs only flour, water, salt, yeast, and more patience than people expect.
We waited on the platform for forty minutes, and then the train went by without stopping.
If the pump makes a grinding noise, switch it off at once and check the filter for sand.
He laughed so loudly at his own joke that the dog left the room.
The committee will meet again on the second Tuesday of the month to approve the budget.
Nobody remembered who had planted the old pear tree, but everyone complained about the wasps.
Heat the oil gently, add the onions, and stir until they are soft but not brown.
My neighbour repairs clocks, though he has never once arrived anywhere on time.
The results were not significant, which the authors mention only in a footnote.
A thin layer of ice covered the pond, and the children had been told to keep away.
You can return the jacket within thirty days as long as the label is still attached.
The river rose two metres in one night and carried off the footbridge.
Please sign both copies, keep one for your records, and post the other to our office.
Her first novel sold badly; her second one was never published at all.
The engine turned over twice, coughed, and fell silent again.
Light travels more slowly in glass than in air, and so a straw in a drink looks bent.
They painted the kitchen yellow because it was the only colour left in the shop.
When the bell rang, thirty chairs scraped across the floor at the same moment.
The loan must be repaid in equal parts over five years, with interest due each quarter.
An owl called from the barn, and a moment later something small stopped moving.
He wrote the number on the back of his hand and then washed it off by mistake.
The function returns a sorted list and leaves the one that it was given as it was.
In winter the road over the pass is closed, so the bus takes the longer way round.
I have read the instructions three times, and I still have one screw too many.
The goalkeeper saw the ball late, dived early, and somehow caught it anyway.
Cells divide, and each of the two halves keeps a full copy of the instructions.
The museum is free on Sundays, but the queue often reaches as far as the corner.
After the storm, sand lay in the streets and a rowing boat hung in a tree.
She speaks slowly, chooses each word with care, and seldom takes one back.
The tenant shall keep the garden tidy and shall not cut down any tree without consent.
Cheese and apples make a fine lunch if the bread is fresh and there is time to sit.
The violinist tuned one string, frowned, and tuned it again while the hall grew quiet.
Press and hold the button for ten seconds until the light turns from red to green.
Our tent leaked, the matches were wet, and still it was the best week of that summer.
The price of copper fell sharply in spring and had recovered by the end of the year.
Grandmother kept every receipt in a tin box, sorted by the weather on the day.
Patients who slept well before the operation went home a day sooner than the others.
There was a smell of smoke, then a shout, then the sound of many feet on the stairs.
The old map shows a well in the courtyard, but nobody has ever found it.
Do not place the heater near curtains, and never leave it on while you are asleep.
Two boys on bicycles raced the tram to the market square and won by a wheel.
The lecture was about moss, and to my surprise I did not want it to end.
Each player draws five cards, discards two of them, and passes one to the left.
The baker's son became a pilot, and the pilot's daughter took over the bakery.
He was, by his own account, the third best chess player in a very small village.
Rain is expected in the afternoon, with strong gusts along the coast and on high ground.
The error goes away when the cable is replaced, so the port itself is probably fine.
A spider had spun its web across the mailbox, and for a week we collected no letters.
They argued about the fence for eleven years and were friends again within an hour.
The bridge was designed for carts; it now carries nine thousand lorries a day.
Boil the jars first, fill them while they are hot, and close the lids at once.
I would rather walk in the wrong direction than stand still, she said, and walked.
The witness could describe the hat in detail but not the face beneath it.
In the third act the butler turns out to be a duke, and no one is surprised.
The glacier has lost a third of its length since the first photographs were taken.
Someone had written a shopping list in the margin: eggs, soap, string, forgiveness.
The shop sells buttons, only buttons, and it has been there longer than the bank.
The proof is short, but each of its four lines took somebody a decade.
On the night shift one learns to tell the nurses apart by the sound of their shoes.
The cat considered the closed door as if it were a personal remark.
Turn left at the church, follow the wall, and stop when you can hear water.
Sales of umbrellas doubled, which says less about fashion than about the month of May.
The choir rehearsed in the cellar, where the echo hid most of the mistakes.
Gravel crunched, a car door closed softly, and the porch light went out.
The patch fixes a memory leak that appeared only on machines left running over weekends.
Wheat prefers heavy soil; rye will grow almost anywhere and asks for little.
He counted the steps on the way up and got a different number on the way down.
The jury could not agree, so the case will be heard again in the autumn.
Once the glue has dried, sand the edges lightly and wipe away the dust with a damp cloth.
Every evening at six the ferry sounded its horn, and every evening the baby woke up.
""".strip().splitlines()
)
