"""Common English words, the commonest kinds first: what `past_tense` and `plural` inflect.

Regular and irregular ones mixed, chosen so that dictionaries agree on one form.
"""

# Strings to split: a list would be a word a line.

VERBS = """
say go get make know think take see come want look use find give tell work call try ask need feel
become leave mean keep begin seem help talk turn start show hear play run move like live believe
hold bring happen write provide sit stand lose meet include continue change lead understand watch
follow stop create speak allow add spend grow open walk win offer remember love consider appear buy
wait serve die send expect build fall reach kill remain suggest raise pass sell require report
decide pull break catch choose draw drink drive eat fight forget forgive freeze hide lay lend ride
ring rise shake shoot sing sink sleep slide steal stick strike swear swim swing teach throw wear
weep jump cook clean wash paint laugh smile cry carry study marry plan dance kick push touch climb
enjoy visit answer arrive enter fill finish hope join knock lift listen miss plant pour pray press
promise rain return save share shout sign taste thank tie trade trust vote wander warn whisper wish
worry bind bite bleed blow cling creep deal dig feed flee seek spin
"""

NOUNS = """
year man day woman child way school state family student group country problem hand part place case
week company system program question night point mother room fact month book eye job word
side house friend father power hour game line end member law car city name team minute idea
body face level office door art war party result reason morning girl boy teacher foot nation plan
dog cat horse cow goose mouse tooth knife wife wolf shelf thief hero potato tomato photo piano radio
box fox dish church watch bench glass kiss match lady baby berry cherry army enemy factory library
puppy pony key monkey toy ray crisis thesis basis hypothesis oasis bacterium policy college market
story leg arm bird tree river bridge ship star flower garden window chair table spoon bottle wheel
farm village king queen prince soldier doctor nurse lawyer writer singer coat shirt shoe ring coin
letter page song dream island valley beach peach brush branch witch speech lunch coach tax copy
duty lorry spy fly
"""
