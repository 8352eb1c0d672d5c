"""A stand-in for tinyshakespeare: original pseudo-Elizabethan drama from a seeded grammar.

Without the real text the book must still run, so this module writes plays in the same layout and the same
65 characters. Nothing here is taken from an existing play: the words, the templates and the names are the
project's own. The result is no literature, but it has what a small language model can learn: spelling,
agreement (thou art, he hath, they do), verse lines, speakers who answer the question just asked, courtesy
and abuse.

How to read the lists. The earlier an entry stands, the likelier it is drawn (weight 1 / (rank + 4), close to
Zipf's law). `{name}` is replaced by a rule or a word, and `{name:form}` asks for a form: `s` plural, `ed`
past, `en` participle, `ing`, or the person of a verb (`I`, `thou`, `he`, `they`). In a rule, `*` stands for
the form the rule was asked for. `break/broke/broken` gives irregular forms.
"""

from __future__ import annotations

import random
import re
import textwrap
from bisect import bisect
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache


def listed(text: str) -> list[str]:
    """The entries of a comma-separated list, which may run over several lines."""
    return " ".join(text.split()).split(", ")


# Words by topic: who acts, thing, mass (uncountable), adj, verb (transitive), act and stir (intransitive,
# of people and of things), where. A speech keeps to one topic and borrows from COMMON.

TOPICS = {
    "war": {
        "who": """soldier, captain, archer, enemy, sentry, traitor, drummer, spearman/spearmen, prisoner,
            champion""",
        "thing": """sword, banner, drum, shield, wall, trumpet, spear, helm, arrow, siege, tower, breach,
            tent, battlement, bow, scar, dagger, pike""",
        "mass": "war, blood, victory, valour, steel, slaughter, peace, thunder, conquest, treason",
        "adj": """bloody, valiant, dreadful, warlike, iron, broken, fearless, battered, hostile,
            conquering, trampled""",
        "verb": """strike/struck, slay/slew/slain, fight/fought, defend, besiege, conquer, wound, betray,
            scatter, arm, storm, capture, pierce""",
        "act": "march, bleed/bled, retreat, charge, yield, fall/fell/fallen, muster, stand/stood",
        "stir": "burn, fall/fell/fallen, shine/shone, break/broke/broken, thunder, rust",
        "where": """in the camp, upon the wall, before the gate, at the breach, beneath our banner,
            across the bridge, among the slain, upon the plain""",
    },
    "love": {
        "who": "lover, maid, suitor, sweetheart, bride, youth, bridegroom, rival, lady, shepherdess",
        "thing": """heart, kiss, vow, ring, glove, sigh, blush, lock, promise, ribbon, smile, garland,
            mirror, sonnet, veil""",
        "mass": "love, beauty, desire, tenderness, constancy, sweetness, longing, faith, jealousy, scorn",
        "adj": """fair, sweet, tender, constant, scornful, blushing, beloved, amorous, lovely, fickle,
            cruel, yielding""",
        "verb": """love, adore, kiss, woo, cherish, desire, forsake/forsook/forsaken, embrace, marry,
            charm, praise, win/won, wed""",
        "act": "sigh, blush, burn, languish, dream, melt, tremble, swoon, smile",
        "stir": "bloom, melt, burn, fade, beat/beat/beaten, wither",
        "where": """beneath {thy} window, in my bosom, beside the fountain, in {thy} arms, at the altar,
            under the linden, upon {thy} lips""",
    },
    "night": {
        "who": """watchman/watchmen, thief/thieves, sleeper, dreamer, wanderer, lamplighter, stargazer,
            pilgrim""",
        "thing": """star, moon, shadow, candle, owl, lantern, bell, dream, bat, torch, cloud, pillow,
            hour, lamp, curtain""",
        "mass": "night, darkness, sleep, silence, moonlight, dew, midnight, rest, dusk, twilight",
        "adj": """dark, silent, pale, sable, starless, drowsy, sleepless, dim, secret, moonlit, dusky,
            hushed""",
        "verb": """watch, hide/hid/hidden, waken, haunt, cover, shroud, darken, dream, light/lit,
            extinguish, follow""",
        "act": "sleep/slept, wake/woke/woken, dream, creep/crept, watch, wander, stumble, whisper, yawn",
        "stir": "glimmer, rise/rose/risen, fade, flicker, sink/sank/sunk, tremble, shine/shone",
        "where": """beneath the moon, in the dark, under the stars, at the casement, in the shadow, by
            candlelight, along the silent street""",
    },
    "sea": {
        "who": """sailor, pirate, fisherman/fishermen, pilot, merchant, mariner, boatswain, drowned
            man/drowned men""",
        "thing": """ship, sail, wave, oar, anchor, harbour, mast, rock, net, shell, tide, rudder, deck,
            pearl, gull, hull, rope, keel, island""",
        "mass": "water, foam, salt, wind, sand, spray, seaweed, shipwreck, calm",
        "adj": """salt, drowned, restless, foamy, deep, stormy, briny, windy, green, fathomless,
            homeward, sunken""",
        "verb": "drown, sail, steer, launch, swallow, moor, wreck, ferry, cross, plunder, hoist, anchor",
        "act": "sail, drown, float, row, swim/swam/swum, sink/sank/sunk, drift, fish",
        "stir": "drift, roll, sink/sank/sunk, swell, foam, ebb, roar",
        "where": """upon the sea, in the harbour, beneath the waves, on the rocks, at the mast, along the
            shore, beyond the bar, in the hold""",
    },
    "crown": {
        "who": """king, queen, prince, subject, courtier, usurper, heir, counsellor, herald, duke,
            tyrant, page""",
        "thing": """crown, throne, sceptre, realm, palace, robe, seal, kingdom, court, title, council,
            province, canopy""",
        "mass": """majesty, power, honour, ambition, greatness, obedience, flattery, rule, glory,
            rebellion, duty""",
        "adj": """royal, crowned, mighty, golden, proud, sovereign, lawful, imperial, ambitious, loyal,
            regal, stately""",
        "verb": "crown, rule, obey, banish, serve, flatter, command, depose, govern, honour, exile, summon",
        "act": "reign, kneel/knelt, rule, bow, plot, obey, govern",
        "stir": "fall/fell/fallen, totter, shine/shone, pass, endure, crumble",
        "where": """upon the throne, at court, in the council, before the king, within the palace, among
            the peers, at the foot of the throne""",
    },
    "grief": {
        "who": "mourner, widow, orphan, mother, father, weeper, comforter, son, daughter, brother",
        "thing": """tear, grave, sorrow, tomb, sigh, coffin, groan, wound, burden, memory, shroud,
            cypress, farewell""",
        "mass": """grief, sorrow, woe, pity, despair, mourning, comfort, ashes, patience, death, misery,
            weeping""",
        "adj": """sad, heavy, bitter, sorrowful, mournful, weary, tearful, dead, bereft, hopeless,
            wounded, comfortless""",
        "verb": """mourn, bury, weep/wept, lament, comfort, pity, bewail, lose/lost, remember, grieve,
            console""",
        "act": "weep/wept, mourn, die, suffer, lament, grieve, sob, despair, pine",
        "stir": "fall/fell/fallen, weep/wept, wither, linger, ache, break/broke/broken",
        "where": """beside the grave, at the tomb, among the dead, in my breast, under the cypress, in
            the cold ground, by the empty chair""",
    },
    "wine": {
        "who": "drunkard, hostess, tapster, reveller, vintner, fiddler, cellarer, drinker, guest",
        "thing": """cup, tavern, barrel, bottle, goblet, song, jest, table, vineyard, grape, flagon,
            stool, cask, tankard""",
        "mass": "wine, ale, mirth, laughter, thirst, sack, merriment, revelry, cider, folly",
        "adj": "merry, drunken, red, jolly, thirsty, ripe, tipsy, roaring, mellow, overflowing, reeling",
        "verb": "drink/drank/drunk, pour, fill, taste, toast, spill, empty, sip, brew, pledge, swallow",
        "act": "drink/drank/drunk, laugh, sing/sang/sung, dance, roar, carouse, reel, snore, hiccup",
        "stir": "overflow, foam, sparkle, spill, ripen, flow",
        "where": """in the tavern, at the table, in the cellar, under the bench, among the barrels, at
            the sign of the {beast}, beside the tap""",
    },
    "ghost": {
        "who": "ghost, spirit, witch, sexton, phantom, conjurer, spectre, hermit, murderer",
        "thing": """grave, bone, curse, skull, spell, vault, bell, chain, vision, omen, tomb, cauldron,
            charm, raven, sheet, cross""",
        "mass": "death, horror, magic, mist, dust, darkness, murder, sulphur, eternity, prophecy",
        "adj": """ghostly, dead, pale, cursed, haunted, hollow, unquiet, fearful, spectral, buried,
            murdered, strange""",
        "verb": "haunt, conjure, murder, curse, frighten, summon, bury, bewitch, poison, warn, raise",
        "act": "walk, groan, vanish, tremble, appear, moan, beckon, rise/rose/risen",
        "stir": "vanish, rattle, glow, groan, rise/rose/risen, moulder",
        "where": """in the churchyard, among the tombs, at the crossroads, in the vault, upon the
            battlements, beneath the gallows, in the ruined chapel""",
    },
    "garden": {
        "who": """gardener, bee, beekeeper, shepherd, nightingale, maiden, butterfly,
            ploughman/ploughmen, child/children""",
        "thing": """rose, flower, tree, lily, apple, hedge, thorn, orchard, leaf/leaves, blossom, root,
            violet, bough, fountain, seed, nest, daisy, willow, arbour""",
        "mass": "spring, summer, honey, dew, sunlight, grass, shade, moss, rosemary, thyme, fragrance",
        "adj": """green, sweet, fragrant, blooming, sunny, wild, ripe, thorny, leafy, fruitful, budding,
            mossy""",
        "verb": "plant, water, gather, pluck, prune, tend, scatter, weed, graft, climb, crop, shelter",
        "act": "sing/sang/sung, stroll, blossom, dig/dug, ripen, rest, hum, gather",
        "stir": "bloom, blossom, grow/grew/grown, ripen, wither, fade, spring/sprang/sprung, nod",
        "where": """in the garden, under the apple tree, among the roses, beside the hedge, in the
            orchard, upon the grass, beneath the willow""",
    },
    "letter": {
        "who": "messenger, scribe, secretary, scholar, poet, courier, clerk, spy, ambassador",
        "thing": """letter, seal, word, pen, line, page, secret, book, tale, scroll, message, promise,
            name, inkhorn, verse, cipher, riddle, packet""",
        "mass": "news, ink, paper, counsel, truth, gossip, wisdom, parchment, poetry, rumour, learning",
        "adj": """written, sealed, secret, false, learned, hasty, unread, forged, eloquent, idle,
            scribbled, faithful""",
        "verb": """read/read, write/wrote/written, send/sent, seal, deliver, burn, open, forge, copy,
            sign, answer, hide/hid/hidden""",
        "act": """write/wrote/written, read/read, speak/spoke/spoken, lie/lied, hasten, listen, ponder,
            rhyme""",
        "stir": "arrive, speak/spoke/spoken, burn, tell/told, lie/lay/lain, vanish",
        "where": """in this letter, upon the page, under the seal, in my closet, at the desk, between the
            lines, in the margin, by the post""",
    },
    "horse": {
        "who": "rider, groom, smith, farrier, carter, horseman/horsemen, ostler, squire, tinker",
        "thing": """horse, saddle, bridle, hoof/hooves, stable, mare, whip, road, spur, mane, mule, cart,
            rein, stirrup, halter, wheel, horseshoe, colt""",
        "mass": "speed, hay, dust, mud, leather, haste, straw, sweat, corn, pasture",
        "adj": """swift, lame, bridled, galloping, muddy, restive, dappled, black, stubborn, saddled,
            spavined, weary""",
        "verb": """ride/rode/ridden, saddle, spur, shoe/shod, tame, whip, drive/drove/driven, bridle,
            outrun/outran/outrun, stable, mount""",
        "act": "ride/rode/ridden, gallop, stumble, hasten, neigh, trot, mount, halt",
        "stir": "rattle, turn, stumble, creak, gleam, bolt",
        "where": """in the stable, upon the road, at the ford, along the highway, in the mire, across the
            heath, at the smithy, between the shafts""",
    },
    "gold": {
        "who": "merchant, usurer, beggar, miser, banker, goldsmith, debtor, creditor, steward, pedlar",
        "thing": """purse, coin, debt, ducat, jewel, bargain, chest, ring, price, farthing, diamond,
            market, coffer, bond, necklace, ledger, penny/pence""",
        "mass": "gold, silver, wealth, poverty, profit, usury, bounty, charity, avarice, thrift, money",
        "adj": """rich, poor, golden, precious, costly, greedy, penniless, borrowed, glittering,
            worthless, thrifty, cheap""",
        "verb": """buy/bought, sell/sold, lend/lent, owe, steal/stole/stolen, pay/paid, count, borrow,
            hoard, weigh, squander, repay/repaid""",
        "act": "beg/begged, bargain, borrow, prosper, starve, pay/paid, trade, gamble",
        "stir": "glitter, jingle, gleam, dwindle, multiply, rust",
        "where": """in my purse, at the market, in the counting-house, under the floor, upon the scales,
            in the coffer, at the goldsmith's door""",
    },
    "church": {
        "who": "friar, priest, pilgrim, sinner, saint, bishop, abbot, nun, angel, monk, martyr",
        "thing": """prayer, bell, altar, candle, church, blessing, soul, psalm, cloister, sin, cross,
            penance, steeple, sermon, chapel, relic, vow""",
        "mass": "heaven, grace, mercy, virtue, piety, incense, forgiveness, sanctity, holiness, repentance",
        "adj": """holy, blessed, sinful, humble, divine, pious, heavenly, hallowed, penitent, righteous,
            wicked""",
        "verb": """bless, pardon, confess, forgive/forgave/forgiven, absolve, worship, redeem, christen,
            save, damn, shrive/shrove/shriven""",
        "act": "pray, kneel/knelt, repent, fast, sin, preach, confess, sing/sang/sung",
        "stir": "toll, ring/rang/rung, rise/rose/risen, burn, ascend, echo",
        "where": """in the chapel, before the altar, at vespers, in the cloister, beneath the steeple,
            upon my knees, at the gates of heaven""",
    },
    "hunt": {
        "who": "huntsman/huntsmen, hunter, falconer, forester, poacher, woodman/woodmen, outlaw, keeper",
        "thing": """hound, stag, falcon, hare, forest, horn, fox, boar, snare, trail, arrow, thicket,
            wolf/wolves, den, glade, oak, deer/deer, antler, burrow""",
        "mass": "venison, bracken, cunning, game, hunger, sport, patience, fern, woodcraft",
        "adj": """wild, swift, hunted, savage, shaggy, fleet, wounded, cunning, tawny, horned, baying,
            ravenous""",
        "verb": "hunt, chase, snare, trap, follow, loose, kill, track, catch/caught, devour, course, bait",
        "act": "hunt, run/ran/run, howl, leap, crouch, bark, hide/hid/hidden, flee/fled",
        "stir": "howl, leap, echo, rustle, flee/fled, bristle",
        "where": """in the forest, under the oak, at the edge of the wood, among the ferns, in the
            thicket, down the glade, upon the scent""",
    },
    "storm": {
        "who": "traveller, wanderer, shepherd, beggar, ploughman/ploughmen, castaway, giant, stranger",
        "thing": """cloud, storm, tempest, oak, roof, mountain, hill, river, flood, torrent, thunderbolt,
            cliff, cave, cottage""",
        "mass": "rain, wind, lightning, thunder, hail, weather, fury, fire, chaos, shelter",
        "adj": """wild, raging, furious, black, wet, howling, drenched, ragged, swollen, thundering,
            pitiless, roofless""",
        "verb": """drench, shake/shook/shaken, tear/tore/torn, shelter, blast, uproot, drown,
            overthrow/overthrew/overthrown, batter, outlast, rend/rent""",
        "act": "rage, shiver, cower, shout, roar, wander, shelter, struggle",
        "stir": "rage, roar, crack, howl, burst/burst, rumble, break/broke/broken",
        "where": """upon the heath, in the rain, beneath the cliff, under the bare sky, on the mountain,
            in the cave, amid the thunder""",
    },
    "feast": {
        "who": "cook, baker, butcher, guest, glutton, scullion, host, butler, carver, fishwife/fishwives",
        "thing": """pie, goose/geese, kitchen, spoon, oven, capon, loaf/loaves, pudding, platter,
            knife/knives, onion, turnip, feast, egg, kettle, sausage, pot, apron""",
        "mass": """bread, cheese, butter, mustard, pepper, hunger, broth, bacon, gravy, honey, supper,
            plenty""",
        "adj": """hungry, fat, roasted, greasy, savoury, burnt, hot, plump, buttered, stale, well-fed,
            pickled""",
        "verb": """eat/ate/eaten, roast, carve, bake, boil, serve, season, devour, butter, stuff,
            steal/stole/stolen, baste""",
        "act": "eat/ate/eaten, dine, feast, belch, cook, starve, nibble, sweat",
        "stir": "boil, steam, smoke, cool, simmer, hiss",
        "where": """in the kitchen, at supper, beside the oven, in the larder, upon the spit, under the
            dish-cover, at the head of the table""",
    },
    "law": {
        "who": """judge, prisoner, gaoler, lawyer, hangman/hangmen, constable, witness, thief/thieves,
            juror, bailiff""",
        "thing": """prison, chain, key, sentence, gallows/gallows, crime, dungeon, oath, cell, rope,
            cause, verdict, statute, plea, fetter""",
        "mass": "justice, law, mercy, guilt, innocence, perjury, judgment, liberty, evidence, punishment",
        "adj": """guilty, just, innocent, lawless, chained, condemned, upright, perjured, severe, stern,
            corrupt, merciful""",
        "verb": """judge, condemn, accuse, pardon, hang/hanged, release, imprison, arrest,
            swear/swore/sworn, punish, bribe""",
        "act": "plead, swear/swore/sworn, confess, hang/hanged, languish, testify, appeal, escape",
        "stir": "clank, rust, open, close, stand/stood, perish",
        "where": """in the dungeon, before the judge, at the bar, behind the bars, in chains, beneath the
            gallows, at the quarter sessions""",
    },
    "music": {
        "who": "singer, fiddler, minstrel, piper, dancer, player, harper, jester, lutenist",
        "thing": """song, lute, string, pipe, note, tune, harp, ballad, viol, dance, drum, chord, fiddle,
            tabor, measure, flute""",
        "mass": "music, harmony, discord, melody, rhythm, applause, laughter, silence, mirth, delight",
        "adj": """sweet, tuneful, jarring, soft, lively, nimble, silver, untuned, shrill, graceful,
            solemn, dancing""",
        "verb": """sing/sang/sung, play, tune, hear/heard, pluck, strike/struck, charm, teach/taught,
            rehearse, soothe, applaud""",
        "act": "sing/sang/sung, dance, play, whistle, hum, caper, bow, skip",
        "stir": "sound, ring/rang/rung, swell, fade, jar, echo, cease",
        "where": """in the gallery, upon the stage, among the players, in the dance, beneath the balcony,
            at the revels, between the acts""",
    },
    "winter": {
        "who": "woodcutter, traveller, old man/old men, miller, crone, shepherd, orphan, grandam",
        "thing": """hearth, fire, frost, cloak, blanket, wolf/wolves, log, icicle, mill, chimney, robin,
            ember, cottage, mitten""",
        "mass": "snow, ice, winter, cold, frost, smoke, wool, age, firelight, kindling",
        "adj": "cold, frozen, white, bitter, bare, old, icy, grey, hoary, shivering, barren, threadbare",
        "verb": """freeze/froze/frozen, warm, kindle, chill, thaw, outlive, wrap, nip, bury, feed/fed,
            endure""",
        "act": "shiver, freeze/froze/frozen, huddle, age, limp, starve, cough, doze",
        "stir": "freeze/froze/frozen, melt, glow, crackle, thaw, drip, smoulder",
        "where": """by the hearth, in the snow, upon the ice, beside the fire, beneath the eaves, at the
            frozen mill, in the chimney corner""",
    },
    "physic": {
        "who": """doctor, patient, apothecary, surgeon, nurse, midwife/midwives, barber, leech,
            madman/madmen, sleepwalker""",
        "thing": """fever, potion, herb, wound, pill, plaster, phial, cure, pulse, cough, tooth/teeth,
            crutch, bandage, bed, remedy, blister, draught""",
        "mass": "health, poison, sickness, physic, blood, madness, plague, pain, melancholy, balm, vinegar",
        "adj": """sick, feverish, wholesome, poisoned, bitter, feeble, mad, healing, raving, aching,
            swollen, sound""",
        "verb": "heal, cure, poison, bleed/bled, infect, nurse, swallow, ease, purge, dose, revive",
        "act": "ail, recover, cough, sicken, faint, sneeze, rave, mend",
        "stir": "burn, ache, work, swell, mend, throb, fail",
        "where": """upon my bed, in the sickroom, at the apothecary's shop, in my veins, beside the
            pillow, under the lancet""",
    },
}

COMMON = {
    "who": """man/men, friend, woman/women, fool, stranger, child/children, master, servant, neighbour,
        lord, knave, wife/wives, husband, villain, kinsman/kinsmen, knight, boy, mother, coward, father,
        citizen, cousin, wretch, gentleman/gentlemen, brother, sister, peasant, magistrate, tailor,
        weaver, cobbler, sailor, beggar, philosopher, nobleman/noblemen, gossip, scholar, liar, twin,
        foreigner""",
    "thing": """word, hand, day, house, eye, heart, tongue, door, world, thought, name, hope, life/lives,
        dream, face, fear, deed, hour, road, field, city, truth, voice, window, cause, wish, step,
        shadow, head, doubt, bed, wrong, gift, stone, cloak, friendship, road, jest, garment, stair,
        task, bridge, hat, boot, riddle, nail, feather, basket, mousetrap, doublet, thimble, button,
        chair, stocking, quarrel, proverb, journey, bargain, hinge""",
    "mass": """time, love, truth, hope, honour, fortune, fear, death, joy, reason, anger, fate, nature,
        pride, heaven, pity, trouble, courage, shame, hatred, envy, conscience, kindness, malice, wit,
        courtesy, breath, youth, folly, nonsense, hypocrisy, wonder, gratitude, sloth, prudence,
        ignorance, mischief""",
    "adj": """good, great, poor, true, false, noble, old, young, sweet, gentle, honest, little, strange,
        bold, foul, kind, dear, cold, proud, wise, foolish, cruel, worthy, happy, idle, base, weak, rare,
        brave, simple, rude, patient, blind, hard, swift, quiet, unhappy, plain, grave, subtle, vain,
        angry, wretched, modest, tedious, ungrateful, crooked, fortunate, humble, lonely, curious,
        peevish, crafty, obstinate, invisible, excellent, unlucky, sober, two-faced, long-lost,
        well-beloved, ill-favoured, half-forgotten""",
    "verb": """love, know/knew/known, see/saw/seen, fear, take/took/taken, keep/kept, find/found,
        hear/heard, leave/left, seek/sought, hate, trust, bear/bore/borne, hold/held, bring/brought,
        lose/lost, praise, break/broke/broken, mock, follow, serve, deny, forgive/forgave/forgiven,
        curse, bless, deceive, hide/hid/hidden, despise, remember, move, touch, teach/taught, lead/led,
        call, blame, spare, scorn, offend, beguile, admire, measure, mend, welcome, envy, question,
        flatter, wake/woke/woken, undo/undid/undone, hinder, suspect, ruin, disguise, comfort, astonish,
        carry, embroider, misplace, entertain""",
    "feel": """love, honour, know/knew/known, fear, trust, hate, pity, miss, serve,
        forgive/forgave/forgiven, remember, thank, scorn, obey, forget/forgot/forgotten, defy, follow,
        envy, need, understand/understood, bless, suspect, reverence, abhor""",
    "act": """speak/spoke/spoken, live, die, come/came/come, go/went/gone, stay, weep/wept, laugh,
        stand/stood, wait, sleep/slept, lie/lied, walk, live, return, rise/rose/risen, tremble,
        dwell/dwelt, depart, fall/fell/fallen, boast, sit/sat, kneel/knelt, hope, repent, prattle,
        linger, frown, lurk, prosper, quarrel, stagger, swagger, stammer, blunder, meditate, blaspheme""",
    "stir": """live, die, come/came/come, fall/fell/fallen, change, stand/stood, turn, grow/grew/grown,
        end, hang/hung, lie/lay/lain, speak/spoke/spoken, wait, sleep/slept, fade, move, cry, decay,
        tremble, whisper, return, perish, laugh, smile, wander""",
    "where": """in {place}, in the world, at the door, under heaven, upon the hill, in the street, at
        home, beyond the river, in the market-place, upon the stairs, behind the arras, at the crossing,
        by the well, at the window, beneath the arch, on the road to {place}, in a strange land, within
        these walls, over the mountains, outside the city, here and there, from {place} to {foe}, between
        {place} and the sea, i' the morning light, o'er hill and valley, where no man goes""",
    "when": """this night, to-day, to-morrow, at noon, ere dawn, ere night, before the dawn, at midnight,
        all day, within the hour, at sunset, ere long, once again, at last, ere winter, on the morrow,
        till morning, upon the feast day, at cockcrow, every morning, on Friday, in September, at three
        o'clock, ere the bell ring, ere the moon be full, at Michaelmas, by and by, in an evil hour, till
        doomsday, when the bells are rung, as often as I {act}""",
    "ago": """yesterday, once, last night, an hour ago, in my youth, long ago, last Sunday, of late,
        these ten years, this morning, before the wars, ere now, many a time, three days since, in the
        old king's time, when I was young, at Easter, ere I was born, in a better year, the night I
        {act:ed} {where}, when {place} was but a village, twice in one week""",
    "body": """heart, eye, hand, tongue, soul, breast, arm, head, face, ear, blood/blood, brow, brain,
        cheek, knee, beard, lip, foot/feet, shoulder, nose, belly, finger, bosom, elbow, chin, thumb,
        neck, spleen, liver""",
    "beast": """Dog, Swan, Lion, Goose, Boar, Bear, Cat, Hart, Mermaid, Raven, Unicorn, Hedgehog,
        Cockerel, Pelican, Owl, Griffin, Salmon, Lamb, Bull, Weasel""",
    "number": """two, three, ten, seven, a thousand, twenty, four, a hundred, five, nine, forty, twelve,
        six, eleven, ten thousand, 3""",
    "abuse": """knave, fool, villain, rogue, wretch, churl, varlet, blockhead, coward, liar, dog, slave,
        traitor, ass, rascal, dunce, toad, worm, wastrel, maggot, coxcomb, braggart, cur, scoundrel,
        dolt, goose, hypocrite, lout, clod, snail, turnip, weasel, windbag, ninny, buffoon, beetle,
        dunghill, leech, scarecrow, parrot""",
    "vile": """foul, base, vile, false, idle, impudent, prating, cowardly, lying, rude, thankless,
        stinking, shameless, stupid, paltry, greasy, ill-bred, ragged, villainous, clumsy, wretched,
        sour, slippery, brazen, crawling, mouldy, rotten, unwashed, saucy, insolent, beggarly,
        snivelling, puffed-up, worm-eaten, bottle-nosed""",
    "stem": """mud, toad, onion, goose, clay, turnip, weasel, ditch, sheep, candle, wood, dog, mutton,
        crab, owl, cabbage, pig, straw, oyster, milk, thistle, pebble, mule, soot, herring, pudding,
        wasp, gutter""",
    "part": """headed, faced, brained, hearted, witted, bellied, nosed, footed, tongued, eared, souled,
        handed, bearded, blooded, kneed""",
    "praise": """gentle, good, sweet, noble, kind, dear, fair, honest, gracious, worthy, courteous, true,
        generous, loving, excellent, virtuous, patient, well-spoken""",
    "dear": """friend, comfort, treasure, jewel, joy, hope, light, blessing, delight, star, ornament,
        refuge, sunshine, pillar, nightingale, companion, benefactor""",
    "think": """think, know, fear, swear, hope, say, believe, see, hear, doubt not, dream, find, warrant,
        guess, remember, grant, protest""",
    "adverb": """truly, softly, well, ill, bravely, now, too late, boldly, sweetly, in vain, gladly,
        alone, swiftly, in silence, wisely, too soon, unseen, bitterly, for ever, patiently, strangely,
        like a fool, with a smile, without shame, on foot, by stealth""",
    "trade": """tailor, goose-girl, candle-maker, cobbler, ratcatcher, miller, cheesemonger,
        tooth-drawer, bellows-mender, hatter, ferryman, chimney-sweep, fishmonger, glover, cooper,
        thatcher, wheelwright, organ-grinder""",
    "cry": """O, alas, why, nay, come, peace, soft, hark, look, fie, marry, well, ay, lo, ha, indeed,
        what, so, no, yes, hush, faith, in sooth, enough, heigh-ho""",
    "oath": """by heaven, by my faith, upon my life, by my troth, by this hand, on my honour, by my soul,
        by all the saints, by my beard, by the moon, in good sooth, by my father's grave, as I am true,
        by the bells of {place}, by {thy} leave, by bread and salt, as I hope for {mass}, by land and
        sea, by the rust upon my {thing}, by my grandam's thimble""",
}

AUXILIARIES = {
    "be": "am, art, is, are",
    "was": "was, wert, was, were",
    "have": "have, hast, hath, have",
    "had": "had, hadst, had, had",
    "do": "do, dost, doth, do",
    "did": "did, didst, did, did",
    "will": "will, wilt, will, will",
    "shall": "shall, shalt, shall, shall",
    "can": "can, canst, can, can",
    "cannot": "cannot, canst not, cannot, cannot",
    "may": "may, mayst, may, may",
    "must": "must, must, must, must",
    "would": "would, wouldst, would, would",
    "should": "should, shouldst, should, should",
    "could": "could, couldst, could, could",
    "might": "might, mightst, might, might",
    "need": "need, needst, needs, need",
    "dare": "dare, darest, dares, dare",
}

# The grammar. `one` and `ones` are people, `it` and `things` are not; `deed` and `state` are what they do;
# `clause` joins the two, `say` is a whole sentence. `ask_X` and `tell_X` are the two sides of an exchange.

RULES = {
    "poss": """
        my
        {thy}
        our
        {his}
        the {who}'s
        {third}'s
        their
        {absent}'s""",
    "it": """
        the {thing}
        {poss} {thing}
        {mass}
        the {adj} {thing}
        {poss} {adj} {thing}
        this {thing}
        {poss} {body}
        a {adj} {thing}
        {poss} {mass}
        that {adj} {thing}
        {adj} {mass}
        the {mass} of {one}
        every {thing}
        the {thing} of {mass}
        this {adj} {mass}
        the {adj}, {adj} {thing}
        the {thing} of {place}
        one {thing}
        such {mass}""",
    "one": """
        the {who}
        {third}
        {poss} {who}
        the {adj} {who}
        a {adj} {who}
        {absent}
        this {who}
        {poss} {adj} {who}
        that {vile} {abuse}
        every {who}
        my {praise} {who}
        some {adj} {who}
        the {who} of {place}
        the {who}'s {who}
        the {adj}, {adj} {who}
        {absent} the {trade}
        many a {who}""",
    "things": """
        the {thing:s}
        {poss} {thing:s}
        {adj} {thing:s}
        these {adj} {thing:s}
        {thing:s} and {thing:s}
        {poss} {adj} {thing:s}
        {number} {thing:s}
        {poss} {body:s}
        all {thing:s}
        the {thing:s} of {mass}
        {number} {adj} {thing:s}
        the {thing:s} of {place}""",
    "ones": """
        the {who:s}
        {poss} {who:s}
        {adj} {who:s}
        all {who:s}
        {who:s} and {who:s}
        {third} and {absent}
        these {adj} {who:s}
        {number} {who:s}
        the {who:s} of {place}
        our {adj} {who:s}
        such {who:s} and {who:s}
        the {trade:s} of {foe}""",
    "obj": """
        {it}
        {it}
        {it}
        {things}
        {it}
        {one}
        {it}
        {him}
        {things}
        {it} and {it}
        {ones}
        neither {it} nor {it}""",
    "deed": """
        {verb:*} {obj}
        {have:*} {verb:en} {obj}
        {will:*} {verb} {obj}
        {act:*} {where}
        {feel:*} {one}
        {be:*} {adj}
        {verb:*} {obj} {where}
        {do:*} {verb} {obj}
        {do:*} not {verb} {obj}
        {shall:*} {verb} {obj} {when}
        {cannot:*} {verb} {obj}
        {must:*} {act} {where}
        {will:*} never {verb} {obj}
        {act:*} {adverb}
        {did:*} {verb} {obj} {ago}
        {have:*} no {mass}
        {be:*} {feel:en} by {one}
        {may:*} {verb} {obj} {adverb}
        {be:*} more {adj} than {one}
        {had:*} {verb:en} {obj}
        {have:*} {verb:en} {obj} {ago}
        {verb:*} {obj} and {verb:*} {obj}
        {would:*} {verb} {obj} for {mass}
        {be:*} as {adj} as {it}
        {dare:*} not {act} {where}
        {was:*} {adj} {ago}
        {can:*} {verb} {obj} with {mass}
        {should:*} {act} {when}
        {have:*} neither {mass} nor {mass}
        {could:*} not {verb} {obj} without {mass}
        {act:*} and {act:*}, and {cannot:*} {act}
        {might:*} {verb} {obj}, and yet {act}
        {be:*} {verb:ing} {obj} {where}
        {verb:*} {things} as {ones} {verb:they} {things}
        {have:*} {act:en} {where}
        {do:*} but {verb} {obj}
        {act:*} like {one} {where}""",
    "state": """
        {be:*} {adj}
        {stir:*} {where}
        {have:*} {verb:en} {obj}
        {be:*} {verb:en}
        {will:*} {stir} {when}
        {shall:*} {stir} {where}
        {stir:*} like {it}
        {be:*} {verb:en} by {one}
        {verb:*} {obj}
        {be:*} more {adj} than {it}
        {be:*} {where}
        {must:*} be {verb:en} {when}
        {do:*} {stir} {when}
        {have:*} made {him} {adj}
        {be:*} not {adj}, but {adj}
        {cannot:*} {verb} {obj}
        {was:*} {verb:en} {ago}
        {be:*} but {it}
        {stir:*} and {stir:*}
        {will:*} make {thee} {adj}
        {was:*} never so {adj}
        {be:*} {verb:en} {adverb}
        {stir:*} {where}, {adj} and {adj}
        {be:*} too {adj} to be {verb:en}
        {stir:*} {adverb}""",
    "clause": """
        I {deed:I}
        {one} {deed:he}
        {it} {state:he}
        {thou} {deed:thou}
        {he} {deed:he}
        we {deed:they}
        {things} {state:they}
        {ones} {deed:they}
        they {deed:they}
        {one} {verb:ed} {obj} {ago}
        my {body} {state:he}
        I {verb:ed} {obj} {where}
        I {feel} {thee}
        {one} {feel:he} me
        there is {it} {where}
        'tis {adj} to {verb} {obj}
        {thou} {feel:thou} me
        {adj} is {it}
        {one} that {verb:he} {obj} {deed:he}
        {where} {stir:he} {it}
        nothing {verb:he} {obj} but {it}
        {it} that {verb:ed} {obj} {state:he}
        'twas {one} that {verb:ed} {obj}
        {it} and {it} {state:they}
        {one} {have:he} {feel:en} {thee}
        so {adj} is {it} that {it} {state:he}
        I never {verb:ed} {obj}
        {adverb} {did:he} {one} {verb} {obj}
        {where} I {verb:ed} {obj}
        neither {it} nor {it} {verb:he} {obj}
        there {stir:he} {it}, and there {stir:he} {it}
        {mass} {have:he} {verb:en} {one}
        {obj} I {verb}, and {obj} I {verb}
        {third} {have:he} the {thing}, and I the {thing}
        all the {thing:s} of {place} cannot {verb} {obj}
        {one} {feel:he} me, and I {feel} {one}""",
    "short": """
        I know it
        so be it
        no more of that
        'tis well
        I care not
        let that pass
        enough of {mass}
        what then
        it may be so
        I heard as much {ago}
        who would not weep
        that is not all
        mark me
        O {mass}
        would it were otherwise
        there's {mass}
        what's past is {verb:en}
        a {thing}, a {thing}
        mine own {body}
        so they say in {place}""",
    "say": """
        {clause}.
        {clause}, and {clause}.
        {clause}; {clause}.
        {short}: {clause}.
        {clause}, for {clause}.
        {clause}, but {clause}.
        {third} {deed:he}; {he} {deed:he}.
        {it} {state:he}: it {state:he}, and it {state:he}.
        When {clause}, {clause}.
        {cry}, {clause}!
        {oath}, {clause}.
        I {think} {clause}.
        If {clause}, then {clause}.
        {ones} {deed:they}; they {deed:they}.
        As {it} {stir:he} {where}, so {clause}.
        {cry}, {adj} {thing}! {cry}, {adj} {mass}!
        Let {one} {verb} {obj}, and let {one} {verb} {obj}.
        Though {clause}, yet {clause}.
        {one} {deed:he}, and {deed:he}; {clause}.
        {clause}. {short}.
        I {deed:I}, and I {deed:I}, for I {deed:I}.
        Not {it}, nor {it}, can {verb} {obj}.
        Methinks {clause}.
        I have seen {things} {stir} {where}, and {clause}.
        What is a {who} without {mass}? A {thing} without a {thing}.
        How {adj} is {it}, and how {adj} {it}!
        They say that {clause}; I say that {clause}.
        He that {verb:he} {obj} {will:he} {verb} {obj}.
        What is {mass} but {it} {where}?
        Better to {verb} {obj} than to {verb} {obj}.
        My {body} {state:he}, and my {body} {state:he}.
        Mark how {it} {stir:he}: so {clause}.
        Would that {it} had {verb:en} {obj}!
        There is {it} {where} that {verb:he} {obj}.
        I had a {thing} {ago}: I {verb:ed} it, and now it {stir:he} {where}.
        There was a {who} in {place}, a {adj} {who}, that {verb:ed} {obj}.
        Where {one} {deed:he}, there {clause}.
        To {verb} {obj}, to {verb} {obj}, to {act} {where}: this is {mass}.
        I {feel} {thee} not for {mass}, but for {mass}.
        {ago} I {verb:ed} {obj}, and {clause}.
        {clause}: {clause}, and {clause}.
        {thou} {deed:thou}; {thou} {deed:thou}, and yet {clause}.
        Some {verb} {things}, some {verb} {things}, and {clause}.
        What {one} {verb:he}, {one} {verb:he}.
        Once I {verb:ed} {obj}; {cry}, now I {verb} {obj}.
        Never did {one} {verb} {obj} so {adverb}.
        Had I {it}, I would {verb} {obj}.
        Is there {mass} {where}? Is there {mass} {where}?
        Until {one} {verb:he} {obj}, {clause}.
        Is a {thing} less {adj} because a {who} {verb:ed} it?
        {cry}, my {adj} {thing}, that {verb:ed} {obj} {ago}!
        Since {clause}, I {deed:I}.
        The {thing}! The {thing}! {clause}.
        Give me {it}, and take {it}; {clause}.
        Farewell, {adj} {mass}! {clause}.
        {clause}, or else {clause}.
        First {it}, then {it}, and last of all {it}.
        Think on {it}; think how {clause}.
        O, were {it} but {it}, and {it} {it}!
        I am no {who}, that I should {verb} {obj}.
        Come {it}, come {it}, {clause}.
        They {deed:they} -- {clause} -- and they {deed:they}.
        {poss} {thing} was {adj}, {poss} {thing} {adj} too, and {clause}.
        In {place} they {verb} {obj}; in {foe} they {verb} {obj}.
        I'll {verb} {obj}, and thou'lt {verb} {obj}, and he'll {verb} {obj}.
        We'll {act} {where} {when}, and {act} {where}.
        Who shall {verb} the {thing}? Not I. Who shall {verb} it? Not {one}.
        The more I {verb} {it}, the less I {verb} {it}.
        Men call it {mass}; I call it {mass}.
        From {mass} to {mass}, from {it} to {it}, I {act} {where}.
        I was a {who} {ago}; now I am a {who}, and {clause}.
        My {who} told me {ago} that {clause}.
        Were I {one}, I would {verb} {obj}; but I {deed:I}.
        {mass} and {mass} are brothers: the one {verb:he} {obj}, the other {verb:he} {obj}.
        Bring me {it}, bring me {it}, and bid {one} {verb} {obj}.
        I have {act:en} in {place}, and {act:en} in {foe}, and never {verb:ed} {obj}.
        Take away {it}, and what is {it}?
        The {adj} {verb:they} the {adj}, and the {adj} {verb:they} us all.
        Did not {one} {verb} {obj}? Did not {one} {verb} {obj}?
        Be {it} never so {adj}, {it} {state:he}.
        Number me {things}, weigh me {things}: they {state:they}.
        'Tis not {it} that {verb:he} {obj}, but {it}.
        All is {it} now: {clause}.""",
    "kind": """
        I thank {thee}, {you}; {clause}.
        {you}, {clause}.
        {clause}, {you}.
        {thou} {be:thou} a {praise} {dear} to me and {third}.
        {praise} is {thy} {body}, and {praise} {thy} {body}.
        I pray {thee}, {verb} {obj}, {you}.
        Prithee, {you}, be {praise}: {clause}.
        {thou} {have:thou} ever been my {praise} {dear}.
        {cry}, {you}, my {dear}! {clause}.
        With all my {body} I {feel} {thee}, {you}.
        May heaven {feel} {thee}, and {verb} {thy} {thing:s}!
        I {verb} {thy} {praise} {thing}, and {thy} {adj} {thing}.
        Pardon me, {you}: {clause}.
        {you}, I am {thy} {praise} servant {when}.
        So please {thee}, {you}, {clause}.
        God keep {thee} {where}, {you}.
        Be comforted, {you}; {clause}.
        Take my {thing}, {you}, and my {mass}.
        No {who} in {place} {have:he} a {thing} so {praise} as {thine}.
        {thou} {be:thou} welcome {where}, {you}.
        What {praise} {mass} is {thine}, {you}!
        {thy} {mass}, {you}, {verb:he} {obj}.""",
    "rude": """
        Begone, {you}! {clause}.
        {thou} {be:thou} {insult}, and {insult}.
        {you}, {clause}.
        {clause}, {you}.
        Out, {you}! {clause}.
        Hold {thy} tongue, {you}!
        {thou} {verb:thou} {things} like {insult}.
        A plague upon {thy} {thing}, {you}!
        {cry}, {you}! {cry}, {you}!
        {thou} {vile} {thing} of a {who}!
        I have seen {things} more {adj} than {thee}.
        There's more {mass} in {it} than in {thy} {body}.
        {thy} {thing} is {adj}, {thy} {thing} {adj}, {you}!
        What {vile} {abuse} {verb:ed} {thee} {where}?
        May {it} {verb} {thee}, and {it} {verb} {thy} {thing:s}!
        {thou} {have:thou} the {body} of {insult}, and the {body} of {insult}.
        Go, {act} {where}, {you}!
        Never did {place} breed {insult} so {vile}.
        Away with {thee}, {you}, and with {thy} {adj} {thing}!
        {thy} {mass} is {mass}, {you}, and {thy} {thing} a {thing}.""",
    "insult": """
        a {vile} {abuse}
        a {stem}-{part} {abuse}
        a {vile}, {vile} {abuse}
        a {abuse}
        the {vile} {abuse} of {place}
        a {vile}, {stem}-{part} {abuse}
        the {abuse} of all {abuse:s}""",
    "you_rude": """
        {thou} {vile} {abuse}
        {abuse}
        {thou} {stem}-{part} {abuse}
        {vile} {abuse}
        {thou} {abuse}
        {thou} {vile}, {stem}-{part} {abuse}
        false {name}
        {thou} {abuse}, {thou} {abuse}
        {vile} {name}
        thing of {mass}""",
    "you_lord": """
        my lord
        {name}
        good {name}
        my good lord
        noble {name}
        good sir
        my lord {name}
        gentle {name}
        sir
        {praise} {name}
        your grace
        {praise} sir
        my {praise} lord
        dear my lord
        {praise} prince of {place}""",
    "you_lady": """
        my lady
        {name}
        gentle {name}
        my good lady
        madam
        {praise} {name}
        fair {name}
        good madam
        my lady {name}
        {praise} lady
        sweet mistress
        my {praise} lady
        lily of {place}""",
    "you_man": """
        good {name}
        friend
        honest {name}
        good fellow
        sir
        {praise} {name}
        my friend
        good sir
        gentle sir
        {praise} friend
        neighbour""",
    "you_woman": """
        good {name}
        honest {name}
        good mistress
        {praise} {name}
        my good {name}
        mistress
        gentle mistress
        {praise} mistress
        neighbour""",
    "ask_greet": """
        Good morrow, {you}.
        Good even, {you}. {clause}.
        Hail, {you}! What brings {thee} {where}?
        Well met, {you}, {when}.
        God save {thee}, {you}!
        How now, {you}! Up so early {where}?
        Welcome, {you}, to {place}.
        Who's there? Is it {name}?
        All {mass} to {thee}, {you}!
        Joy to {thy} {body}, {you}, and {mass} to {thy} {body}.""",
    "tell_greet": """
        Good morrow, {you}.
        And to {thee}, {you}, {mass} and {mass}.
        Well met, {you}. I came from {foe} {ago}.
        I thank {thee}, {you}.
        {thou} {be:thou} welcome, {you}.
        God keep {thee}, {you}. {clause}.
        It is I, {me}. {clause}.
        The same to {thee}, {you}, and {mass} besides.
        I come to {verb} {obj}, {you}.""",
    "ask_where": """
        Where is the {focus}, {you}?
        Where {have:thou} {thou} laid the {adj} {focus}?
        But tell me, {you}, where is the {focus}?
        Prithee, {you}, where is the {focus}?
        Who hath seen {his} {focus}?
        {you}, where lies the {focus} of {third}?
        Where is {third}, {you}, and where {his} {focus}?""",
    "tell_where": """
        The {focus} is {where}, {you}.
        {where}, {you}, where {it} {stir:he}.
        I left the {focus} {where} {ago}.
        {third} {have:he} it, {you}; {he} {verb:ed} it {ago}.
        I know not, {you}. Ask {one}.
        I saw the {focus} {where}, and {one} beside it.
        Lost, {you}, lost {where}!
        Seek it {where}; there {one} {verb:ed} it.
        Look for the {focus} {where}, or {where}.""",
    "ask_who": """
        Who {verb:ed} the {focus}, {you}?
        What {who} {have:he} {verb:en} the {focus}?
        Who was it that {verb:ed} {third} {where}?
        Tell me, {you}, who {verb:ed} {thee} {ago}?
        Whose {focus} is this?""",
    "tell_who": """
        {one}, {you}, and {one}.
        'Twas {third} that did it, {you}, {ago}.
        No man but {one}.
        I did, {you}; and I will {verb} the {focus} again.
        {third}, they say; but I {think} {clause}.
        The same that {verb:ed} {obj} {where}.
        It was {one}, {ago}. {clause}.
        Who but {one}? {clause}.""",
    "ask_why": """
        Why {do:thou} {thou} {verb} {obj}, {you}?
        Wherefore {act:thou} {thou} {where}, {you}?
        Why is {it} so {adj}?
        What cause {have:thou} {thou} to {verb} {obj}?
        Why, {you}, why must {one} {act} {where}?
        Wherefore {have:he} {third} {verb:en} {obj}?""",
    "tell_why": """
        Because {clause}, {you}.
        For that {clause}.
        Ask me not why. {clause}.
        My reason is {it}, {you}: {clause}.
        For {mass}, {you}, and for {it}.
        Because I {feel} {one}, and {one} {feel:he} not me.
        Because {clause}, and because {clause}.
        Why {do:he} {it} {stir}? So {clause}.""",
    "ask_whether": """
        {do:thou} {thou} {verb} {obj}, {you}?
        {have:thou} {thou} {verb:en} the {focus}?
        {will:thou} {thou} {verb} {obj} {when}?
        Is {it} {adj}, {you}?
        Prithee, {you}, {do:thou} {thou} {verb} {obj}?
        Is {third} {adj}? Is {he} {where}?
        {be:thou} {thou} {adj}, {you}?
        {can:thou} {thou} {verb} {obj}?
        {did:thou} {thou} {act} {where} {ago}, {you}?
        Shall we {act} {where}, {you}?""",
    "tell_whether": """
        Ay, {you}, {clause}.
        No, {you}; {clause}.
        I do, {you}, {adverb}.
        Not I, {you}. {clause}.
        {oath}, no!
        {oath}, ay! {clause}.
        As surely as {it} {stir:he}.
        I neither know nor care, {you}.
        Sometimes {clause}; sometimes {clause}.
        Yes, and more: {clause}.
        Never, while {it} {stir:he} {where}.""",
    "ask_news": """
        What news, {you}?
        What news from {foe}, {you}?
        How goes it with {third} {where}?
        What says {third}, {you}?
        Now, {you}, what tidings of {it}?
        What noise is that {where}?
        Speak, {you}: how fares {third}?""",
    "tell_news": """
        {third} is {verb:en}, {you}, {where}.
        {adj} news, {you}: {clause}.
        {he} {deed:he}, {you}, and {deed:he}.
        They say in {place} that {clause}.
        {third} {have:he} {verb:en} {obj} {where}, and {clause}.
        None, {you}, but that {clause}.
        The {who:s} of {foe} {deed:they}, {you}.
        {third} sends {thee} {it}, {you}, and {it}.
        {he} lives, {you}, but {act:he} {where}.
        {he} is dead, {you}. {he} {verb:ed} {obj}, and died.
        {number} {who:s} {deed:they} {where}.""",
    "ask_when": """
        When {shall:thou} {thou} {verb} {obj}, {you}?
        When did {third} {verb} the {focus}?
        How long {have:thou} {thou} {verb:en} {obj}?
        What hour is it, {you}?
        When comes {third} to {place}?""",
    "tell_when": """
        {when}, {you}, if {clause}.
        {when}, or {when}.
        Not till {one} {verb:he} {obj}.
        When {it} {stir:he} {where}, {you}.
        {number} hours hence, {you}.
        Ere {one} can {verb} {obj}.
        Never, {you}, never; {clause}.
        Soon, {you}: {when}.""",
    "ask_request": """
        I pray {thee}, {you}, lend me {thy} {focus}.
        Prithee, {you}, {verb} {obj} for my sake.
        {you}, I beseech {thee}, {verb} {obj}.
        Pray {verb} {obj} {when}, {you}.
        Might I have the {focus}, {you}?
        Let me {verb} {thy} {focus}, {praise} {name}.
        Of {thy} {mass}, {you}, {verb} {obj} {where}.""",
    "tell_request": """
        With all my {body}, {you}.
        {thou} {shall:thou} have it, {you}, and {it} too.
        Gladly, {you}. Take the {focus}.
        I will, {you}, {when}; {clause}.
        Forgive me, {you}, I cannot: {clause}.
        {you}, {thou} {need:thou} not ask; {clause}.
        For {thee}, {you}, I would {verb} {obj}.
        It is {thine}, {you}, and I am {thine}.""",
    "ask_gift": """
        Take this {adj} {focus}, {you}.
        {third} sends {thee} this {focus}, {you}, with {his} {mass}.
        I have brought {thee} a {focus} from {foe}, {you}.
        {you}, here is a {focus}, and here {number} {thing:s}.
        Accept, {you}, this {adj} {focus} and my {mass}.""",
    "tell_gift": """
        I thank {thee}, {you}, for the {focus}.
        A thousand thanks, {you}! {clause}.
        {thou} {be:thou} too {praise}, {you}.
        Many thanks, {you}. I'll {verb} the {focus} {where}.
        {cry}, {you}, never was a {focus} so {adj}!
        I thank {thee}; and take {thou} this {thing}, {you}.""",
    "ask_woo": """
        {cry}, {you}, {thy} {body} is {it}, and I {act} {where}.
        {you}, I {feel} {thee} more than {it}.
        Say {thou} {feel:thou} me, {you}, and {clause}.
        {thy} {body} hath {verb:en} my {body}, {you}.
        Let me but kiss {thy} {body}, {you}.
        Marry me, {you}, and {thou} {shall:thou} {verb} {obj}.""",
    "tell_woo": """
        {thou} {feel:thou} me {adverb}, {you}.
        {cry}, {you}, I {feel} {thee} too, and {verb} {thy} {body}.
        Speak not of {mass}, {you}: {clause}.
        My {body} is {third}'s, {you}.
        Ask my {who}, {you}; {clause}.
        First {verb} {obj}, {you}, and then {act} {where}.
        {thou} {have:thou} my {body}, {you}; take my {thing} also.""",
    "ask_name": """
        What {be:thou} {thou}, {you}?
        {cry}, who {be:thou} {thou} that {act:thou} {where}?
        Speak {thy} name, {you}.
        What {who} {act:he} there {where}?""",
    "tell_name": """
        I am {me}, {you}, of {place}.
        My name is {me}, {you}; {clause}.
        {me} they call me {where}.
        A {adj} {who}, {you}, that {verb:ed} {obj}.
        I am {one}, {you}, and {one} {feel:he} me.
        {me}, {you}: look on my {body}.""",
    "ask_riddle": """
        What is it, {you}, that {verb:he} {obj} and is never {adj}?
        Riddle me this: what {stir:he} {where}, yet {verb:he} {obj}?
        What is more {adj} than {it}, and more {adj} than {it}?
        Tell me, {you}, the difference between {it} and {it}.""",
    "tell_riddle": """
        A {focus}, {you}.
        {one}, {you}; for {clause}.
        The one {verb:he} {obj}, {you}, the other {verb:he} {obj}.
        {it}, {you}! I learned it of {one}.
        {cry}, a {who} {where}, or else {it}.
        I cannot guess, {you}. Is it {it}?""",
    "ask_plan": """
        {you}, let us {verb} {third} {when}.
        {when} we'll {verb} {obj} {where}, {you}.
        What if {one} should {verb} {obj}, {you}?
        Go {thou} and {verb} {obj}; I'll {verb} {obj} {where}.
        How shall we {verb} the {focus}, {you}?""",
    "tell_plan": """
        Agreed, {you}; and I will {verb} {obj}.
        'Tis too {adj}, {you}. {clause}.
        I like it well, {you}: {clause}.
        And if {one} {verb:he} us, {you}, what then?
        {when} be it, {you}, and {where}.
        First {it}, {you}, and then the {focus}.
        I'll not {verb} {third}, {you}; {he} {verb:ed} me {ago}.""",
    "ask_bill": """
        What do we owe, {you}, for {it}?
        Read me the reckoning, {you}.
        What is the price of the {focus}, {you}?
        How much, {you}, for {things}?""",
    "tell_bill": """
        3 crowns, {you}, and not a farthing less.
        Item: 3 {thing:s} & 3 {thing:s}, {you}, 3 crowns.
        {number} crowns, {you}, and {it}.
        {number} ducats for the {focus}, {you}, & {number} for {it}.
        Item: {number} {thing:s} at $3, & a {adj} {thing} at $33.
        Thus it stands, {you}: a {thing} & a {thing}, 3 shillings; {number} {thing:s}, {number} crowns.
        Nothing, {you}, but {it}.""",
    "ask_warn": """
        Beware, {you}: {clause}.
        Fly, {you}! {one} {verb:he} {thee} {where}.
        {you}, trust not {one}.
        Look to {thy} {thing}, {you}; {one} {deed:he}.
        I dreamed {ago}, {you}, that {clause}.""",
    "tell_warn": """
        I fear {it} no more than {it}, {you}.
        I'll heed {thee}, {you}, and {verb} {obj}.
        {cry}! Then must I {act} {where} {when}.
        Let {him} come, {you}: {clause}.
        A dream, {you}, is but {it} {where}.
        I thank {thee} for {thy} {mass}, {you}.""",
    "ask_insult": """
        {thou} {be:thou} {insult}, {you}!
        What, {you}! {be:thou} {thou} {where}?
        {you}, {thou} {verb:thou} {obj} like {insult}.
        Begone, {you}, or I'll {verb} {thee}!
        {you}, {thy} {who} was {insult}, and {thy} {who} {insult}.
        Give me {it}, {you}, or {clause}.
        {thy} {body} {state:he}, {you}.""",
    "tell_insult": """
        {you}! I am no {abuse}, I.
        And {thou}, {you}, {be:thou} {insult}.
        Call me {abuse} again, {you}, and {clause}.
        {abuse}? To me, {you}? {clause}.
        I scorn {thee}, {you}, and {thy} {thing}.
        I had rather {verb} {obj} than {verb} {thee}, {you}.
        {thy} {thing} is as {vile} as {thy} {body}, {you}.
        Say so to {one}, {you}, and not to me.""",
    "ask_threat": """
        Yield, {you}, or I'll {verb} {thy} {body}!
        I'll {verb} {thee} {where}, {you}!
        Draw, {you}! {clause}.
        {you}, {thou} {shall:thou} {act} {where} {when}.
        Where is the {focus}, {you}? Speak, or {act} {where}!
        {you}, what {have:thou} {thou} done with the {focus}?""",
    "tell_threat": """
        I fear {thee} not, {you}: {clause}.
        Do, {you}, and {one} shall {verb} {thee}.
        {thou} {dare:thou} not, {you}.
        Spare me, and I'll {verb} {obj} {when}.
        The {focus} is {where}, {you}. Go, {verb} it!
        Threaten {one}, {you}, not me.
        Come then, {you}! My {thing} is {adj}.""",
    "ask_accuse": """
        {you}, {thou} {have:thou} {verb:en} the {focus}.
        {do:thou} {thou} deny, {you}, that {clause}?
        It was {thou}, {you}, that {verb:ed} {third}.
        Who but {thou}, {you}, {verb:ed} {obj} {where}?
        {thou} {have:thou} {verb:en} my {who}, {you}, and my {thing}.""",
    "tell_accuse": """
        I did not, {you}: {clause}.
        {thou} liest, {you}! 'Twas {one}.
        I {verb:ed} it, {you}, and would again.
        Prove it, {you}, before {one}.
        {oath}, {you}, I never {verb:ed} the {focus}.
        I {verb:ed} {third}, {you}, because {clause}.""",
    "ask_farewell": """
        Farewell, {you}. {clause}.
        Adieu, {you}; {when} we'll {act} {where}.
        Good night, {you}, and {mass} be with {thee}.
        Let us go in, {you}.
        Away, {you}! {clause}.
        Come, {you}, to {place}!
        Farewell: I go to {verb} {obj} {where}.
        Lead on, {you}; I follow, though {clause}.""",
    "tell_farewell": """
        Farewell, {you}.
        Farewell, {you}; {clause}.
        {mass} go with {thee}, {you}.
        I follow {thee}, {you}, {when}.
        Till then, {you}, {clause}.
        Adieu, {you}. {say}
        Go, {you}; {when} I shall {verb} {obj}.""",
}

# Who plays. A noble has a rank and a first name, a commoner a trade; half of the commoners come in numbers.

MEN = listed("""Orso, Tavian, Alberot, Vespero, Quillon, Haldrik, Lucastor, Brantz, Corvane, Emeric,
    Fabrizzo, Gismond, Jocelin, Kaspian, Leofar, Malvern, Nestorio, Odemar, Pellon, Rufino, Silvan,
    Thandor, Ulfred, Wystan, Xandro, Yvor, Zephon, Aldous, Bertolf, Dorvane""")
WOMEN = listed("""Mirabel, Ysmene, Xanthe, Jessamy, Ursella, Quintina, Violetta, Zenobel, Aveline,
    Bellamira, Clarimond, Dulcia, Elowen, Felisia, Griselde, Hesper, Isaura, Lunetta, Marisol, Nerida,
    Orlaith, Petronel, Rosamund, Sabrine""")
LORDS = listed("DUKE, LORD, KING, COUNT, PRINCE, SIR, EARL, BARON")
LADIES = listed("LADY, QUEEN, DUCHESS, PRINCESS, COUNTESS, DAME")
TRADESMEN = listed("""Guard, Messenger, Servant, Soldier, Fisherman, Gravedigger, Friar, Gaoler, Steward,
    Cobbler, Watchman, Porter, Sailor, Clown, Shepherd, Huntsman, Apothecary, Tailor, Ostler, Citizen,
    Player, Gentleman""")
TRADESWOMEN = listed("Nurse, Hostess, Milkmaid, Widow, Witch, Goosewife, Washerwoman, Gentlewoman, Abbess")
ONSETS = listed("""Val, Mar, Or, El, Cas, Tor, Bran, Ser, Quel, Zan, Ul, Fen, Dor, Ky, Har, Is, Pel, Jar,
    Xer, Wend""")
MIDDLES = listed("a, e, i, o, en, ar, and, el, um, or, is, ever, in, u, ov, est")
CODAS = listed("""dor, moor, mark, thia, ford, lis, no, wick, gard, ra, holm, na, burg, vento, mere,
    stead, za, port""")

# What is asked in each mood, the number of sentences between an answer and a question, and the words that
# lean on the next one and so should not end a line.

MOODS = {
    "meet": "greet, name, news",
    "kind": "whether, where, news, why, request, who, when, gift, plan, woo, riddle, warn, name, bill",
    "rude": "insult, threat, accuse, where, why, whether, who, name, plan, bill",
    "part": "farewell",
}
SENTENCES = [0, 1, 0, 2, 1, 3, 0, 5, 8, 12]
LEANING = listed("""the, a, an, my, mine, thy, thine, our, your, his, her, their, this, that, these,
    every, no, of, to, in, upon, at, by, with, from, for, and, nor, or, but, i, so, too, as, than, is,
    that, when, if, o'er, i', such, not, more""")


@dataclass(frozen=True)
class Role:
    """One of the cast: the label above a speech, the name others use, and how they address the bearer."""

    label: str
    name: str
    title: str  # the name with its article: "Orso", "the nurse"
    address: str  # the rule for courteous address, such as "you_lord"

    @property
    def noble(self) -> bool:
        return self.address in ("you_lord", "you_lady")


@dataclass(frozen=True)
class Question:
    """What the last speaker asked, for the next one to answer."""

    kind: str
    focus: str
    topic: str


# The lists and rules above, made ready for drawing.

WORDS = {kind: listed(text) for kind, text in COMMON.items()}
TOPIC_WORDS = {topic: {kind: listed(text) for kind, text in kinds.items()} for topic, kinds in TOPICS.items()}
TEMPLATES = {rule: [line.strip() for line in text.strip().splitlines()] for rule, text in RULES.items()}
# How often a word comes from the topic, and not from common stock
TOPICAL = dict(thing=0.85, stir=0.75, mass=0.7, who=0.65, where=0.6, act=0.6, adj=0.6, verb=0.5)
ASKS = {mood: listed(text) for mood, text in MOODS.items()}
PERSONS = {
    name: dict(zip(("I", "thou", "he", "they"), listed(text), strict=True))
    for name, text in AUXILIARIES.items()
}
THOU = {"thou": "thou", "thee": "thee", "thy": "thy", "thine": "thine"}
YOU = {"thou": "you", "thee": "you", "thy": "your", "thine": "yours"}

DOUBLED = {"abhor", "forget", "outrun", "quarrel", "worship"}
SYMBOL = re.compile(r"\{(\w+)(?::(\w+))?\}")
SENTENCE_START = re.compile(r"(?:^|(?<=[.!?] ))'?[a-z]")


@cache
def zipf(n: int) -> list[float]:
    """Cumulative weights 1 / (rank + 4) of n entries, scaled to end at 1."""
    sums, total = [], 0.0
    for rank in range(n):
        total += 1.0 / (rank + 4)
        sums.append(total)
    return [s / total for s in sums]


@cache
def inflect(entry: str, form: str) -> str:
    """One form of a word: the base, `s` (nouns), `es` (he loves), `eth`, `est`, `ed`, `en` or `ing`."""
    base, *irregular = entry.split("/")
    if irregular and form in ("s", "ed", "en"):
        return irregular[-1] if form == "en" else irregular[0]
    if form in ("s", "es"):
        return pluralised(base)
    if form == "ing":
        return re.sub("([^eo])e$", r"\1", doubled(re.sub("ie$", "y", base))) + "ing"
    ending = "ed" if form == "en" else form
    stem = re.sub("([^aeiou])y$", r"\1i", doubled(base)) if ending else base
    return stem + (ending[1:] if stem.endswith("e") else ending)


def pluralised(word: str) -> str:
    """The word with a regular final s: bell -> bells, kiss -> kisses, cry -> cries."""
    if re.search("[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if re.search("(s|x|z|o|ch|sh)$", word) else "s")


def doubled(word: str) -> str:
    """The word, its last consonant doubled where an ending asks for it: stab -> stabb, but fear -> fear."""
    one_syllable = re.fullmatch("(qu|[^aeiou])*[aeiou][^aeiouwxy]", word)
    return word + word[-1] if one_syllable or word in DOUBLED else word


def capitalised(text: str) -> str:
    """The text with a capital at its start and after each full stop, question mark and exclamation mark."""
    return SENTENCE_START.sub(lambda match: match[0].upper(), text)


class Playwright:
    """Writes plays without end; every choice comes from one seeded stream of numbers."""

    def __init__(self, seed: int):
        # `random()` alone is promised to give the same numbers on every version of Python.
        self.random = random.Random(seed).random
        self.topic = ""
        self.bound: dict[str, str] = {}  # symbols with a fixed meaning in the present speech
        self.recent: deque[str] = deque(maxlen=6)  # words not to repeat at once

    # Draw from the lists and expand templates.

    def choose(self, options: list):
        """One of the options, the earlier the likelier."""
        return options[bisect(zipf(len(options)), self.random())]

    def sample(self, options: list, n: int) -> list:
        """n different options, all equally likely."""
        pool = list(options)
        return [pool.pop(int(self.random() * len(pool))) for _ in range(n)]

    def draw(self, rule: str) -> str:
        """One expansion of the rule."""
        return self.expand(self.choose(TEMPLATES[rule]))

    def expand(self, template: str) -> str:
        """The template with its symbols replaced."""
        return SYMBOL.sub(self.replacement, template)

    def replacement(self, match: re.Match) -> str:
        name, form = match[1], match[2] or ""
        name = self.vocative if name == "you" else name
        if name in self.bound:
            return self.bound[name]
        if name in PERSONS:
            return PERSONS[name][self.person(form)]
        if name in TEMPLATES:
            return self.expand(self.choose(TEMPLATES[name]).replace("*", form))
        return self.word(name, form)

    def person(self, form: str) -> str:
        """The person of a verb: a speaker who says `you` uses the plural."""
        return "they" if form == "thou" and self.bound["thou"] == "you" else form

    def word(self, kind: str, form: str) -> str:
        """A word not used just before, from the topic or from common stock, in the form asked for."""
        topical = TOPIC_WORDS[self.topic].get(kind)
        while True:
            entry = self.choose(topical if topical and self.random() < TOPICAL[kind] else WORDS[kind])
            if entry not in self.recent:
                break
        self.recent.append(entry)
        return self.expand(inflect(entry, self.ending(form)))

    def ending(self, form: str) -> str:
        """The ending that belongs to a person: he loves or loveth, thou lovest, you love."""
        if form == "he":
            return "eth" if self.random() < 0.5 else "es"
        return {"I": "", "they": "", "thou": "est"}.get(self.person(form), form)

    # Compose a speech.

    def speech(
        self, speaker: Role, listener: Role, question: Question | None, mood: str
    ) -> tuple[str, Question | None]:
        """The speaker's next speech in the mood, and the question it ends in, if any."""
        self.address(speaker, listener, mood)
        parts = []
        # Answer what was asked
        if question:
            self.topic, self.bound["focus"] = question.topic, question.focus
            parts.append(self.draw(f"tell_{question.kind}"))
        # Say something of one's own
        tone = "rude" if mood == "rude" else "kind"
        for _ in range(max(self.choose(SENTENCES), 0 if question else 1)):
            parts.append(self.draw(tone if self.random() < 0.25 else "say"))
        # Ask something in turn
        question = self.question(mood) if mood in ASKS and self.random() < 0.6 else None
        if question:
            parts.append(self.draw(f"ask_{question.kind}"))
        return self.layout(speaker, " ".join(parts)), question

    def address(self, speaker: Role, listener: Role, mood: str) -> None:
        """Fix what the personal symbols mean in this speech: `you`, `me`, `thou` and the rest."""
        formal = (listener.noble and not speaker.noble) != (self.random() < 0.15)
        self.bound.update(YOU if formal else THOU, me=speaker.title, name=listener.name)
        self.vocative = "you_rude" if mood == "rude" else listener.address

    def question(self, mood: str) -> Question:
        """A question about some thing of the present topic."""
        self.bound["focus"] = self.word("thing", "")
        return Question(self.choose(ASKS[mood]), self.bound["focus"], self.topic)

    def layout(self, speaker: Role, text: str) -> str:
        """A speech under its speaker's name: verse for the nobles, prose for the others."""
        text = re.sub(r"\b([Aa]) (?=[aeiouAEIO]|hon|hour|heir)", r"\1n ", text)
        text = re.sub(r"\b([TtMm]h?)y (?=[aeio])", r"\1ine ", text)
        text = capitalised(text)
        rows = self.verse(text) if speaker.noble else textwrap.wrap(text, 52, break_on_hyphens=False)
        return "\n".join([speaker.label + ":", *rows])

    def verse(self, text: str) -> list[str]:
        """Lines of about ten syllables, ending with a phrase where they can, each with a capital."""
        rows, row, width = [], [], 46
        for word in text.split():
            length = len(" ".join(row))
            if length + len(word) >= width or length > 28 and row[-1][-1] in ",.;:!?" and self.random() < 0.6:
                # Carry a word that leans on the next one over to the new line
                carried = [row.pop()] if row[-1].lower() in LEANING else []
                rows.append(row)
                row, width = carried, 38 + int(self.random() * 14)
            row.append(word)
        return [capitalised(" ".join(row)) for row in rows + [row]]

    # Put speeches together.

    def speeches(self) -> Iterator[str]:
        """Play after play, speech by speech."""
        while True:
            company = self.company()
            self.bound.update(place=self.place(), foe=self.place())
            for _ in range(15 + int(self.random() * 10)):
                yield from self.scene(company)

    def company(self) -> list[Role]:
        """Twelve roles, seven of them noble, no two with the same name."""
        men = [self.noble(name, LORDS, "you_lord") for name in self.sample(MEN, 4)]
        women = [self.noble(name, LADIES, "you_lady") for name in self.sample(WOMEN, 3)]
        men += [self.commoner(trade, "you_man") for trade in self.sample(TRADESMEN, 4)]
        return men + women + [self.commoner(trade, "you_woman") for trade in self.sample(TRADESWOMEN, 1)]

    def noble(self, name: str, ranks: Sequence[str], address: str) -> Role:
        rank = self.choose(ranks) if self.random() < 0.5 else ""
        return Role(f"{rank} {name}".strip().upper(), name, name, address)

    def commoner(self, trade: str, address: str) -> Role:
        number = self.choose(["", "First", "Second", "Third"])
        return Role(f"{number} {trade}".strip(), trade.lower(), f"the {trade.lower()}", address)

    def place(self) -> str:
        return "".join(self.sample(part, 1)[0] for part in (ONSETS, MIDDLES, CODAS))

    def scene(self, company: list[Role]) -> Iterator[str]:
        """A conversation of two to five about two others who are away: whoever is asked speaks next."""
        third, absent = self.sample([role for role in company if role.noble], 2)
        self.mention(third, absent)
        present = [role for role in company if role not in (third, absent)]
        cast = self.sample(present, 2 + int(self.random() * 4))
        topics = self.sample(list(TOPICS), 4)
        temper = "rude" if self.random() < 0.4 else "kind"
        speaker, listener, question = cast[0], cast[1], None
        for mood in ["meet"] + [temper] * (4 + int(self.random() * 24)) + ["part", "end"]:
            self.topic = self.choose(topics)
            speech, question = self.speech(speaker, listener, question, mood)
            yield speech
            # Give the word to the one who was asked, else to anyone
            others = [role for role in cast if role is not speaker]
            speaker, listener = listener if question else self.sample(others, 1)[0], speaker

    def mention(self, third: Role, absent: Role) -> None:
        """Name the two who are talked about."""
        he, him, his = ("she", "her", "her") if third.address == "you_lady" else ("he", "him", "his")
        self.bound.update(third=third.name, absent=absent.name, he=he, him=him, his=his)


def generate(characters: int = 1_100_000, seed: int = 1) -> str:
    """At least so many characters of drama, ending with a speech; a longer text continues a shorter one."""
    speeches, length = [], 0
    for speech in Playwright(seed).speeches():
        speeches.append(speech)
        length += len(speech) + 2
        if length > characters:
            return "\n\n".join(speeches) + "\n"
