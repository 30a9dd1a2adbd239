"""The words of the embedded service desk: a bicycle workshop's vocabulary and the weighted phrasings of its mail.

A template holds alternations `[first|second|…]`, nested at will and possibly empty, of which the k-th is drawn with a
probability proportional to `FADE ** k`, and slots `{name}`. They stand densely on purpose: a corpus whose nuclei are
single tokens leaves temporal-difference learning nothing that cloning does not have (equation (4c) of the design).
"""

from __future__ import annotations

FADE = 0.68

MODELS = (
    "Kestrel Marlin Ondine Varro Tessel Bramble Corvus Halden Lyra Quill Sable Torrin Wexford Ember Fenwick"
    " Isolde Jorvik Nimbus Pallas Rowan Selkie Thistle Umbra Vesper Yarrow Zephyr Aldous Brisco Cinder Dorset"
    " Egret Fjord Garnet Hazel Ibex Juniper Krait Linnet Mistral Nettle Osprey Petrel Quartz Rook Sorrel Tamar"
    " Uther Viola Wyvern Xanthe Alder Barley Clover Dunlin Ferrol Gannet Heron Inver Jasper Keswick Lomond Merlin"
    " Norland Oriel Pimlico Redwing Skua Tarn Ullswater Verity Wigeon Yeoman Arden Blythe Corrie Dalton Eskdale"
    " Farrier Glaive Hobson Islay Kinver Lundy Malvern Nevis Ormond Pevensey Rydal Snowdon Teviot Ulverston"
    " Wharfe Ambleside Bodmin Cheviot Dovedale Exmoor Furness Gower Helvellyn Ingleby Kielder Langdale Mendip"
    " Nidd Otterburn Purbeck Quantock Ribble Sedbergh Thirlmere Ullock Ventnor Wensley Yarmouth Zennor Axholme"
    " Bowland Coniston Derwent Ennerdale Fylde Grizedale Howgill"
).split()
PARTS = (
    "chain|saddle|brake pads|inner tube|pedals|handlebar|front light|mudguard|cassette|bottle cage|rear wheel"
    "|helmet|crankset|derailleur|headset|seatpost|stem|freehub|rim tape|bottom bracket|spoke key|chainring"
    "|jockey wheel|bar tape|pannier rack|kickstand|bell|hub dynamo|brake lever|thru axle|quick release"
    "|dropout hanger|spindle|cable guide|toe clip|chain guard|axle nut|ball bearing|circlip|ferrule|grommet"
    "|locknut|master link|nipple|pawl spring|ratchet ring|shim|torque washer|valve core|wingnut|yoke"
).split("|")
RECALLED_MODELS = ("Varro", "Halden", "Nimbus")
STREETS = (
    "Mill Lane|Station Road|Church Street|Harbour Row|Orchard Close|Bridge Street|Abbey Road|Castle Hill"
    "|Meadow Walk|Quarry Lane|Priory Gardens|Tanner Street|Chapel Yard|Foundry Road|Larch Avenue|Kiln Court"
    "|Weir Side|Saltings|Drovers Way|Gorse Bank|Cutlers Gate|Ferry Point|Hatters Passage|Lychgate|Nursery Drive"
    "|Pound Green|Ropewalk|Sluice Bottom|Vicarage Fold|Windmill Rise|Almoner Terrace|Bellfounder Street"
    "|Candlemaker Row|Dovecote Mews|Elmhurst Crescent|Fishergate|Glovers Buildings|Haymarket|Jubilee Parade"
    "|Kingfisher Loke|Lamplighter Steps|Monkbar Snickelway|Parsonage Croft"
).split("|")
STAFF = (
    "Maya Tom Priya Anders Ruth Leo Ines Callum Bea Yusuf Greta Owen Mina Felix Dora Hugo Nora Sami Elsie Ravi"
    " Jana Piet Cleo Arlo Ottilie Zeno Marit Bruno Saskia Idris Tilda Kofi"
).split()
MONTHS = "January February March April May June July August September October November December".split()
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday".split()
RETURN_DAYS = 30

GREETING = "[hello,|hi,|good morning,|dear team,|good afternoon,|hi there,|]"
PLEA = (
    "[thanks|many thanks|please let me know|thank you|please reply soon|kind regards|any news would help"
    "|hoping to hear from you|cheers|]"
)

PROMPTS: dict[str, str] = {
    "order_status": (
        "[where is|what about|can you check|any news on|please track] my order {order}[, the {item},|]"
        " [placed|made|sent off] on {date}? [it is late|still nothing here|I need it soon|]"
    ),
    "return": (
        "I [want|would like|wish|need] to [return|send back] the {item} from order {order}, bought {age} days ago."
        " [it is unused|it does not fit|wrong size|I changed my mind|]"
    ),
    "quote": (
        "[please quote|how much for|what would you charge for|can I have a price for] {quantity} of the {item}"
        " [at|priced at] {price} each [, all new|for our club|for a shop|]?"
    ),
    "appointment": (
        "[can I book|I need|is there room for|please book] a [service|repair|check|tune up] for my {item} on"
        " {weekday} {date}? [mornings suit me|any time is fine|I am flexible|]"
    ),
    "address": (
        "[please change|I moved, so update|can you update|please correct] the [address|delivery address] of order"
        " {order} to {house} {street}. [the old one is wrong|I live there now|]"
    ),
    "product": (
        "[does|will|would] the {item}, code {code}, [fit|suit|work with] a [road|touring|city|mountain|folding] bike?"
        " [it is for my daughter|mine is old|I ride daily|]"
    ),
    "complaint": (
        "the {item} from order {order} [is broken|arrived damaged|makes a noise|came loose|does not work]."
        " [I am not happy|this is annoying|very poor|what now|]"
    ),
    "invoice": (
        "[please send|I need|can you resend|I lost] invoice {invoice} for {amount} [euros|euro] [dated|of] {date}."
        " [it is for my accountant|our office wants it|]"
    ),
    "cancel": (
        "[please cancel|I must cancel|can you stop|do cancel] order {order} [for|with] the {item}."
        " [I found another|it takes too long|I no longer need it|]"
    ),
}

OPENING = (
    "[[thanks|thank you|many thanks] [so much|a lot|very much|]"
    "|[hello|hi|hi there|good day|dear customer], [thanks|thank you|cheers]] for [your|the|this]"
    " [message|note|question|mail|request|letter][.|!|,]"
)
CLOSING = (
    "[[have|enjoy] a [great|lovely|good|fine|pleasant|safe] [day|week|ride|evening|morning|weekend]"
    "|[ride|travel|stay] [safely|well|happily]|[best|kind|warm|good|many] [wishes|regards|greetings]"
    "|[see|talk to] you [soon|then|again]|[all the best|take care|cheers|yours]], {staff}"
    "[.|!| at Larkfield Cycles.| from the workshop.]"
)
OFFER = (
    "[|[do|please|just|feel free to] [ask|write|call|ring] [us|me|again] [if|when|whenever]"
    " [anything|something] [else|more] [is|seems] [unclear|wrong|missing|odd][.|!]"
    "|[we|I|our team] [can|could|will gladly|would happily] [also|even|still]"
    " [check|adjust|clean|measure|polish|fit|test] [a|your|the] {extra}"
    " [for free|at no cost|next time|any time|on request][.|!]"
    "|[a|our|the] {extra} [is|comes] [cheaper|reduced|half price|on offer] [this|next] [week|month|season][.|!]]"
)

REPLIES: dict[str, str] = {
    "order_status": (
        "[your|the] order {order} [of|from|placed on] {date} [is|seems] [nearly|almost|fully|already|now|partly]"
        " [packed|ready|complete|done|on its way|being checked][.|, and|!] [we|I] [expect|hope|plan|want|aim]"
        " [to [send|ship|post] it|it to [leave|arrive|go out]]"
        " [today|tomorrow|this week|on {anyday}|soon|within {few} days][.|!]"
        " [[sorry|we are sorry|apologies] for the [wait|delay|trouble][.|!]|]"
    ),
    "return_accepted": (
        "[of course|certainly|yes|no problem|sure|gladly], [we|you] [can|may] [take back|return|send back] the {item}"
        " of order {order}[.|!] [please|just|kindly] [use|print|add] [our|the|a] [free|return|prepaid]"
        " [label|form|slip] [and|then] [post|send|drop] [it|the box|everything] [within|in] {few} days[.|!]"
        " [the|your] [refund|money|credit] [takes|needs] [about|around|only|up to] [a week|{few} days][.|!]"
    ),
    "return_refused": (
        "[sadly|unfortunately|I am afraid|I regret that|alas] we cannot refund order {order}, [because|as|since]"
        " {age} days [is|are] [over|past|beyond|more than] [our|the] limit[.|!] [we|I] [can|could|may]"
        " [instead|still|however|only] [offer|suggest|propose] [a|some]"
        " [repair|voucher|exchange|discount|check|credit] [for|on] the {item}[.|!]"
    ),
    "quote": (
        "[we|I] [can|could|would] [offer|sell|supply|deliver|send] [you|] {quantity} of the {item} for {total} euros"
        " [in all|in total|altogether|together][.|!] [the|this|our] [price|offer|quote|sum]"
        " [holds|stands|is valid|counts] [for {few} days|until {anyday}|this week|all month][.|!]"
        " [delivery|shipping|postage] [is free|takes {few} days|costs extra|is included][.|!]"
    ),
    "appointment": (
        "[we|I] [have|booked|noted|reserved|kept|wrote down] [you|a place|a slot|a stand|some time] on {weekday}"
        " {date} [at|around|from] [nine|ten|eleven|two|three|four|noon] [for|to look at] [your|the] {item}[.|!]"
        " [please|kindly|do] [bring|leave|pack|remember] [the|a|your] [bike|key|receipt|lock|lights] [and|or]"
        " [be|come|arrive] [early|on time|a bit before][.|!]"
    ),
    "address": (
        "[done|all set|no problem|certainly|right away|sure]: [we|I] [have|] [changed|updated|moved|corrected|set]"
        " [the|your] [address|delivery] [for|of] order {order} to {house} {street}[.|!] [the|your|that]"
        " [parcel|box|driver|courier|van] [comes|should come|arrives|will be there]"
        " [on {anyday}|tomorrow|soon|within {few} days][.|!]"
    ),
    "product": (
        "[yes|well|certainly|good choice|in short|sure], [the|our|that] {item} with code {code}"
        " [fits|suits|works on|goes with|matches] [most|nearly all|many|all|some] [such|modern|older|common|standard]"
        " [bikes|frames|models|wheels][.|!] [please|just|do|but] [check|measure|note|compare] [the|its|your]"
        " [width|size|length|thread|weight|diameter] [first|before buying|at home|again][.|!]"
    ),
    "recall": (
        "[important|careful|a warning|please note|attention]: there is a recall notice for the {model}"
        " [range|series|line|models][.|!] please stop using it at once [and|, then] [bring|send|return|post]"
        " [it|the part|the {part}] [to|back to] [us|our shop|the workshop|any dealer][.|!] [we|they] [will|can|shall]"
        " [replace|swap|exchange|refund] it [free of charge|today|at once|within {few} days|quickly][.|!]"
    ),
    "complaint": (
        "[I am|we are] [so|very|really|truly|most|] sorry [about|for|to hear about] [the|your] {item} [of|in|from]"
        " order {order}[.|!] [we|I] [can|will|could|shall] [send|post|offer|arrange|give] [you|] [a|another|some]"
        " [new one|repair|replacement|spare|refund|voucher] [today|tomorrow|on {anyday}|this week|soon][.|!]"
        " [please|just|kindly] [keep|send|show|bring] [us|] [the|a] [box|photo|part|receipt][.|!]"
    ),
    "invoice": (
        "[here|attached|below|enclosed] [is|comes|you find] [the|your|a copy of] invoice {invoice} [of|from|dated]"
        " {date} [for|over] {amount} euros[.|!] [it|this] [was|is|has been] [paid|settled|booked|closed|cleared]"
        " [by|with] [card|cash|transfer|voucher] [on {anyday}|last week|in full|already][.|!]"
    ),
    "cancel": (
        "[done|no problem|certainly|very well|understood|all right]: order {order} [is|has been|was]"
        " [now|just|fully|hereby|] [cancelled|stopped|closed|withdrawn|removed][.|!] [we|I] [will|shall]"
        " [pay|send|give] [back|you] [the|your] [money|price|deposit|credit] [for|of] the {item}"
        " [today|on {anyday}|within {few} days|this week|by card][.|!]"
    ),
}
